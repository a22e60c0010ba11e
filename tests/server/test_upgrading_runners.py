"""Runners take the server's new release under their running tasks: real wheels, over real TLS."""

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest

import updraft as package
from tests.cli.calling import ask, call, updraft
from tests.lifecycle.test_upgrade import Release
from tests.server.test_joining_by_line import THIS_PYTHON, can_connect, end, free_port, shell
from tests.waiting import until
from updraft.testing.instance import Instance, instance

NEW = "9.9.9"


class OwnRelease(Release):
    """A server's installation, which makes wheels of the release that it is."""

    def become_new(self) -> None:
        """Be of the new release, for the wheels too."""
        (site,) = self.commands.parent.glob("lib/python*/site-packages")
        info = site / f"updraft_cloud-{NEW}.dist-info"
        asked = "from importlib import metadata; print(metadata.metadata('updraft-cloud'))"
        python = self.commands / "python"
        said = subprocess.run([python, "-c", asked], capture_output=True, text=True, check=True)
        old, new = (f"Version: {version}\n" for version in (package.__version__, NEW))
        assert old in said.stdout
        info.mkdir()
        (info / "METADATA").write_text(said.stdout.replace(old, new))
        self.upgrade()

    def write_wheel(self, house: Path) -> None:
        """Put this release's own wheel beside what it needs."""
        program = (
            "import pathlib, sys; from updraft.cli import wheelhouse; "
            "print(wheelhouse.own_wheel(pathlib.Path(sys.argv[1])).name)"
        )
        words = [str(self.commands / "python"), "-c", program, str(house)]
        said = subprocess.run(words, capture_output=True, text=True, check=True)
        assert said.stdout == f"updraft_cloud-{NEW}-py3-none-any.whl\n"


@contextmanager
def serving(own: Instance, port: int) -> Iterator[None]:
    words = own.command("updraft", "serve", "--listen", f"127.0.0.1:{port}", "--self-signed")
    with subprocess.Popen(words, env=own.environment, stderr=subprocess.DEVNULL) as process:
        try:
            until(lambda: can_connect(port), "the server to listen", 30)
            yield
        finally:
            process.terminate()
            process.wait(30)


def ready(own: Instance, name: str) -> bool:
    return bool(ask(own, "runner", "show", name)["state"] == "ready")


def ended(runner: Instance) -> bool:
    return not runner.processes()


def release_of(own: Instance, name: str) -> str:
    return str(ask(own, "runner", "show", name)["release"])


@pytest.mark.timeout(300)  # wheels are built, downloaded and installed
def test_runners_are_upgraded_under_their_tasks_or_stay_as_they_were(tmp_path: Path) -> None:
    release, other = OwnRelease(tmp_path / "release"), Release(tmp_path / "other-release")
    home, shared = tmp_path / "machine", Instance(tmp_path / "other", other.commands)
    by_line = Instance(home / "updraft", home / "venv" / "bin")
    port = free_port()
    with instance(tmp_path / "server", release.commands) as own, ExitStack() as opened:
        try:
            with serving(own, port):
                wheels = ("--python", THIS_PYTHON, "--machine", os.uname().machine)
                built = call(own, "updraft", "admin", "wheelhouse", *wheels)
                if built.code:
                    pytest.skip(f"wheels cannot be had here: {built.err}")
                updraft(own, "pool", "create", "gpu")
                line = updraft(own, "runner", "token", "gpu", "--line").out.strip()
                assert shell(f"{line} -s -- --name node7", home).code == 0
                token = updraft(own, "runner", "token", "gpu").out
                curl = line.partition("curl ")[2].partition("|")[0]
                pin = re.search(r"fingerprint='(\S+)'", shell(f"curl {curl}", home).out)
                assert pin is not None
                url = f"https://127.0.0.1:{port}"
                words = ("runner", "join", url, "--name", "node8", "--fingerprint", pin[1])
                assert call(shared, "updraft", *words, data=token.encode()).code == 0
                until(lambda: ready(own, "node7") and ready(own, "node8"), "the runners", 30)
                updraft(own, "runner", "drain", "node8")
                said = updraft(own, "runner", "upgrade", "node7")
                assert said.error == (
                    f"updraft: runner node7 has the server's release {package.__version__}"
                )
                client = opened.enter_context(
                    subprocess.Popen(
                        own.command("urun", "-P", "gpu", "sh", "-c", "echo up; read x; echo $x"),
                        env=own.environment,
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                    )
                )
                assert client.stdout is not None
                assert client.stdout.readline() == b"up\n"
                release.become_new()
            with serving(own, port):
                until(lambda: ready(own, "node7"), "the runner to come back", 30)
                listed = updraft(own, "runner", "list").out.splitlines()
                assert listed[1].endswith(f"  {package.__version__} (old)")
                said = updraft(own, "runner", "upgrade", "node7")
                assert (said.error, said.code) == (
                    f"updraft: the wheelhouse has no wheel of release {NEW}; make it: updraft "
                    "admin wheelhouse",
                    1,
                )
                house = own.state / "wheelhouse"
                # A release that does not work replaces nothing.
                release.change("runner/agent/agent.py", "class Agent:", "class Broken:")
                release.write_wheel(house)
                before = ask(own, "runner", "show", "node7"), by_line.processes("agent")
                said = updraft(own, "runner", "upgrade", "node7")
                assert (said.error, said.code) == (
                    "updraft: runner node7 was not upgraded, and is as it was: release "
                    f"{NEW} does not work here: ImportError: cannot import name 'Agent' from "
                    "'updraft.runner.agent.agent' "
                    f"({site(home)}.new/updraft/runner/agent/agent.py)",
                    1,
                )
                assert before[1] == by_line.processes("agent")
                shown = updraft(own, "runner", "show", "node7").out.splitlines()
                assert shown[-1].startswith(f"upgrade  failed: release {NEW} does not work here")
                assert not Path(f"{site(home)}.new").exists()
                release.change("runner/agent/agent.py", "class Broken:", "class Agent:")
                release.write_wheel(house)
                # What others look after is left to them; the rest is upgraded all the same.
                keeper = by_line.processes("keeper")
                said = updraft(own, "runner", "upgrade", "--all")
                assert said.code == 1
                assert said.err.splitlines() == [
                    "updraft: runner node8 cannot be upgraded from here: it was not installed by "
                    "the line of updraft runner token --line; upgrade Updraft on its machine, with "
                    "what installed it, and its agent goes over to that by itself",
                    f"updraft: runner node7 has release {NEW} now",
                ]
                runner = ask(own, "runner", "show", "node7")
                assert (runner["release"], runner["outdated"], runner["tasks"]) == (NEW, False, 1)
                assert by_line.processes("keeper") == keeper
                agent = by_line.processes("agent")
                assert agent != before[1]
                assert updraft(by_line, "--version").out.strip().endswith(NEW)
                assert client.communicate(b"went on\n", 30)[0] == b"went on\n"
                assert client.returncode == 0
                # Idle, the keeper goes over too: the same process, with an agent of its own.
                until(lambda: by_line.processes("agent") not in ([], agent), "its agent", 30)
                until(lambda: by_line.processes("keeper") == keeper, "its leaders to have names")
                # Read by whoever a task runs as, however strict the keeper is about its own files.
                assert (site(home) / "updraft/__init__.py").stat().st_mode & 0o777 == 0o644
                other.upgrade()
                until(lambda: release_of(own, "node8") == NEW, "node8 to notice its upgrade", 30)
                ran = call(own, "urun", "-P", "gpu", "echo", "there")
                assert (ran.out, ran.code) == ("there\n", 0)
                entries = ask(own, "admin", "audit", "--action", "upgrade runner")
                assert [each["subject"] for each in entries] == ["node7", "node7"]
                for name, runner in (("node7", by_line), ("node8", shared)):
                    assert updraft(own, "runner", "remove", name).code == 0
                    until(partial(ended, runner), f"{name} to end by itself", 30)
        finally:
            end(by_line)
            end(shared)


def site(home: Path) -> Path:
    """The folder of what the line installed."""
    (found,) = (home / "venv").glob("lib/python*/site-packages")
    return found
