"""What somebody at a terminal is told while the server's database is away."""

import contextlib
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests import postgresql
from tests.cli.calling import served, updraft
from updraft.testing.instance import instance

pytestmark = pytest.mark.postgresql


def test_a_command_that_waits_for_the_database_says_so_once(tmp_path: Path) -> None:
    with postgresql.cluster() as cluster, instance(tmp_path / "home") as own:
        database = cluster.url(cluster.make_database())
        with served(own, f'[server]\nlocal_pool = false\ndatabase = "{database}"\n'):
            assert updraft(own, "user", "list").code == 0
            cluster.kill()
            master, slave = os.openpty()
            asking = subprocess.Popen(
                own.command("updraft", "user", "list"), env=own.environment,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=slave,
            )  # fmt: skip
            os.close(slave)
            told = b""
            while not told.endswith(b"\n"):
                told += os.read(master, 4096)
            cluster.start()
            out, _ = asking.communicate(timeout=60)
            os.set_blocking(master, False)
            with contextlib.suppress(OSError):  # there is no more, as it should be
                told += os.read(master, 4096)
            os.close(master)
        assert asking.returncode == 0
        assert out.decode().startswith("NAME")
        (line,) = told.decode().splitlines()
        assert re.fullmatch(r"updraft: the .*database .*; trying again for 30 s", line)
        assert "try again;" not in line
