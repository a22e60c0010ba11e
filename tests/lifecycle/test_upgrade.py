"""Releases that meet: an upgrade under a running server; a client and a server of two releases."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

import updraft
from tests import postgresql
from tests.cli.calling import served
from tests.lifecycle.looking import another, client, kept, one_line, only, wait_state
from tests.small_disk import fill, make_room, small_disk
from tests.waiting import until
from updraft.testing.instance import Instance

SCRIPTS = Path(__file__).parents[2] / "src" / "scripts"


class Release:
    """A copy of Updraft in an environment of its own, that can be changed as an upgrade would."""

    def __init__(self, folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        self.commands = folder / "bin"
        (site,) = folder.glob("lib/python*/site-packages")
        # What it depends on is this environment's; a folder in a .pth brings no Updraft along.
        (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        self._package = site / "updraft"
        shutil.copytree(
            Path(updraft.__file__).parent, self._package, ignore=shutil.ignore_patterns("*.pyc")
        )
        for script in SCRIPTS.iterdir():
            text = script.read_text().replace("#!python", f"#!{self.commands / 'python'}", 1)
            (self.commands / script.name).write_text(text)
            (self.commands / script.name).chmod(0o755)

    def change(self, file: str, old: str, new: str) -> None:
        """Write a file anew, as an installer does: another file takes its place."""
        path = self._package / file
        text = path.read_text()
        assert old in text
        written = path.with_suffix(".new")
        written.write_text(text.replace(old, new))
        written.replace(path)

    def upgrade(self) -> None:
        """Become version 9.9.9."""
        self.change("__init__.py", f'"{updraft.__version__}"', '"9.9.9"')


@pytest.fixture
def release(tmp_path: Path) -> Release:
    """Another installation."""
    return Release(tmp_path / "release")


def versions(own: Instance) -> tuple[str, str]:
    """Return the versions that server and agent say they are."""
    answer = json.loads(own.run("updraft", "status", "--json").stdout)
    server, runner = answer["server"] or {}, answer["runner"] or {}
    return server.get("version", ""), runner.get("version") or ""


def test_an_upgrade_is_noticed_and_no_job_notices_it(
    release: Release, make_instance: Callable[..., Instance], tmp_path: Path
) -> None:
    own = make_instance(tmp_path / "home", release.commands)
    with client(own, "-q", "sh", "-c", 'read line; echo "got $line"; exit 7') as process:
        assert process.stdin is not None
        wait_state(own, "RUNNING")
        server, agent, keeper = (only(own, role) for role in ("server", "agent", "keeper"))
        release.upgrade()
        another(own, "server", server)
        another(own, "agent", agent)
        until(lambda: versions(own) == ("9.9.9", "9.9.9"), "both to be new")
        assert only(own, "keeper") == keeper  # its task lives
        stdout, stderr = process.communicate(b"line\n", timeout=20)
        assert (process.returncode, stdout, stderr) == (7, b"got line\n", b"")
    another(own, "keeper", keeper)


@pytest.mark.parametrize("local_pool", [True, False])
def test_a_server_in_the_foreground_becomes_the_new_release_in_the_same_process(
    release: Release, make_instance: Callable[..., Instance], tmp_path: Path, local_pool: bool
) -> None:
    own = make_instance(tmp_path / "home", release.commands)
    with served(own, f"[server]\nlocal_pool = {str(local_pool).lower()}\n") as server:
        if local_pool:
            assert own.run("urun", "echo", "old").stdout == b"old\n"
        release.upgrade()
        file = own.home / "log"
        until(lambda: file.read_text().count("serving at") == 2, "the new release to serve", 30)
        assert versions(own)[0] == "9.9.9"
        if not local_pool:  # the agent may have one waiting for the lock for a moment
            assert own.processes("server") == [server.pid]
        assert server.poll() is None
        log = file.read_text()
        assert "going on as the new release" in log
        assert (
            json.loads(own.run("updraft", "status", "--json").stdout)["server"]["pid"] == server.pid
        )
        assert "rror" not in log
        if local_pool:
            assert own.run("urun", "echo", "new").stdout == b"new\n"
        else:
            # The lock is its own still, and goes with it: another one can serve.
            assert "a server runs already" in own.run("updraft", "serve").stderr.decode()
        server.terminate()
        assert server.wait(timeout=30) == 0
        assert own.run("updraft", "stop").returncode == 0


@pytest.mark.postgresql
def test_a_server_that_stands_by_becomes_the_new_release_and_goes_on_standing_by(
    release: Release, make_instance: Callable[..., Instance], tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir(mode=0o700)
    one, two = make_instance(tmp_path / "one"), make_instance(tmp_path / "two", release.commands)
    with postgresql.cluster() as cluster:
        text = (
            f'[server]\nlocal_pool = false\ndata = "{tmp_path / "data"}"\n'
            f'database = "{cluster.url(cluster.make_database())}"\n'
        )
        with served(one, text) as leader, served(two, text, "standing by") as standby:
            log = two.home / "log"
            release.upgrade()
            until(lambda: log.read_text().count("standing by: another") == 2, "it to stand by", 30)
            assert standby.poll() is None
            leader.terminate()
            leader.wait()
            until(lambda: "serving at" in log.read_text(), "it to take over", 30)
            assert versions(two)[0] == "9.9.9"
            standby.terminate()
            assert standby.wait(timeout=30) == 0


def test_an_upgrade_that_does_not_work_replaces_nothing(
    release: Release, make_instance: Callable[..., Instance], tmp_path: Path
) -> None:
    own = make_instance(tmp_path / "home", release.commands)
    assert own.run("urun", "-q", "true").returncode == 0
    server = only(own, "server")
    log = own.state / "server.log"
    release.change("server/app.py", "import asyncio", "import no_such_module")
    release.upgrade()
    until(lambda: "does not work" in log.read_text(), "the upgrade to be looked at", 20)
    assert only(own, "server") == server
    assert own.run("urun", "echo", "hi").stdout == b"hi\n"
    release.change("server/app.py", "import no_such_module", "import asyncio")


@pytest.mark.parametrize(("theirs", "mend"), [(0, "upgrade"), (2, "updraft stop")])
def test_a_client_of_another_protocol_is_told_in_one_line_and_changes_nothing(
    release: Release, running: Instance, theirs: int, mend: str
) -> None:
    """An older client with a newer server, and the reverse."""
    release.change("wire/frames.py", "WIRE_VERSION = 1", f"WIRE_VERSION = {theirs}")
    before = kept(running)
    for program in ("urun", "ubatch"):
        said = one_line(
            subprocess.run(
                [release.commands / program, "true"],
                env=running.environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=30,
                check=False,
            )
        )
        assert mend in said
    assert kept(running) == before


@pytest.mark.root
def test_a_full_state_folder_is_told_in_one_line_and_keeps_no_job(
    make_instance: Callable[..., Instance], tmp_path: Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounts a disk")
    with small_disk(tmp_path / "disk", 4096, inodes=2000) as disk:
        own = make_instance(disk / "home")
        assert own.run("urun", "-q", "true").returncode == 0
        before = kept(own)
        fill(disk)
        assert "full" in one_line(own.run("urun", "true"))
        make_room(disk)
        assert kept(own).jobs == before.jobs
        assert own.run("urun", "echo", "hi").stdout == b"hi\n"
        own.stop()
