"""The commands of somebody on the machine of a server that stands by."""

import json
from pathlib import Path

import pytest

from tests import postgresql
from tests.cli.calling import served, updraft
from tests.waiting import until
from updraft.testing.instance import instance

pytestmark = pytest.mark.postgresql


def standing(database: str, data: Path) -> str:
    return f'[server]\nlocal_pool = false\ndatabase = "{database}"\ndata = "{data}"\n'


def test_a_standby_says_for_whom_it_stands_by_and_can_be_stopped(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    with (
        postgresql.cluster() as cluster,
        instance(tmp_path / "one") as one,
        instance(tmp_path / "two") as two,
    ):
        settings = standing(cluster.url(cluster.make_database()), data)
        with (
            served(one, settings, "serving at") as first,
            served(two, settings, "standing by") as second,
        ):
            told = (
                f"this server (pid {second.pid}) stands by for another one of this database, "
                "which reaches it from 127.0.0.1"
            )
            until(lambda: updraft(two, "status").code == 0, "the standby to listen")
            shown = updraft(two, "status")
            assert (shown.code, shown.err) == (0, "")
            assert ["server", *told.split()] in [line.split() for line in shown.out.splitlines()]
            found = json.loads(updraft(two, "status", "--json").out)
            assert (found["running"], found["standing_by"]) == (False, told)
            doctor = json.loads(updraft(two, "doctor", "--json").out)
            (server,) = (each for each in doctor if each["check"] == "server")
            assert (server["level"], server["finding"], server["mend"]) == ("OK", told, "")
            assert "runner" not in {each["check"] for each in doctor}

            said = updraft(two, "stop")
            assert (said.code, said.error) == (0, "updraft: stopped")
            assert second.wait(timeout=30) == 0
            assert first.poll() is None
            assert json.loads(updraft(one, "status", "--json").out)["standing_by"] is None
