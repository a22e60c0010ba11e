"""What the launch path and the keeper import: every module shows in a launch's time or in memory.

A module that is new here is a decision, not an accident: `asyncio` alone costs a launch more than
everything that `urun` does.
"""

import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runner.keeper_process import KeeperProcess
from updraft.testing.instance import Instance, instance

URUN = frozenset(
    [
        *("__future__", "errno", "fcntl", "resource", "select", "struct", "termios"),
        *("_signal", "_socket", "_struct"),
        *("updraft", "updraft.bootstrap_client", "updraft.c_modules", "updraft.cli"),
        *("updraft.cli.attached", "updraft.cli.launch_options", "updraft.cli.limits"),
        *("updraft.cli.terminal", "updraft.cli.urun", "updraft.errors", "updraft.quantities"),
        *("updraft.sdk", "updraft.sdk.session", "updraft.sdk.submission", "updraft.sdk.targets"),
        *("updraft.sdk.ways", "updraft.settings", "time"),
        *("updraft.wire", "updraft.wire.frames", "updraft.wire.packing", "updraft.wire.sockets"),
    ]
)
"""All that a launch through a running server may import."""

KEEPER = frozenset(
    [
        *("__future__", "array", "collections", "collections.abc", "ctypes", "ctypes._endian"),
        *("enum", "errno", "fcntl", "functools", "itertools", "keyword", "math", "operator"),
        *("reprlib", "resource", "select", "selectors", "signal", "socket", "struct", "termios"),
        *("types",),
        *("_collections", "_ctypes", "_functools", "_operator", "_signal", "_socket", "_struct"),
        *("updraft", "updraft.c_modules", "updraft.runner", "updraft.runner.keeper"),
        *("updraft.runner.keeper.agent_connection", "updraft.runner.keeper.agent_process"),
        *("updraft.runner.keeper.cgroups", "updraft.runner.keeper.command"),
        *("updraft.runner.keeper.controllers", "updraft.runner.keeper.crew_worker"),
        *("updraft.runner.keeper.crews", "updraft.runner.keeper.hierarchies"),
        *("updraft.runner.keeper.input", "updraft.runner.keeper.isolating"),
        *("updraft.runner.keeper.journal", "updraft.runner.keeper.keeper"),
        *("updraft.runner.keeper.leader", "updraft.runner.keeper.workers"),
        *("updraft.runner.keeper.leaders", "updraft.runner.keeper.output"),
        *("updraft.runner.keeper.processes", "updraft.runner.keeper.records"),
        *("updraft.runner.keeper.stdio", "updraft.runner.keeper.task"),
        *("updraft.settings", "updraft.storage", "updraft.storage.segments"),
        *("updraft.storage.times", "updraft.wire", "updraft.wire.frames", "updraft.wire.packing"),
        "updraft.wire.sockets",
    ]
)
"""All that a keeper may import before and while it runs tasks."""


def imported(log: str) -> set[str]:
    """The modules that ``-X importtime`` names, also those that an import only tried."""
    lines = [line for line in log.splitlines() if line.startswith("import time:")]
    return {line.rsplit("|", 1)[1].strip() for line in lines} - {"imported package"}


def bare(*how: str) -> set[str]:
    """What the interpreter imports for itself when it is started in some way."""
    command = [sys.executable, "-X", "importtime", *how]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    return imported(result.stderr)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """An instance whose server is up."""
    with instance(tmp_path_factory.mktemp("imports") / "home") as made:
        assert made.run("urun", "-q", "true").returncode == 0
        yield made


def launch(of: Instance, *arguments: str) -> list[str]:
    program = "from updraft.cli.urun import main; import sys; main(sys.argv[1:])"
    return [sys.executable, "-X", "importtime", "-c", program, *arguments]


def test_a_launch_imports_nothing_but_this(running: Instance) -> None:
    script = "cat; echo out; echo err >&2; exit 3"
    command = launch(running, "-e", "A=b", "--name", "x", "sh", "-c", script)
    result = subprocess.run(
        command,
        env=running.environment,
        input="typed\n",
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (result.returncode, result.stdout) == (3, "typed\nout\n")
    assert imported(result.stderr) - bare("-c", "pass") <= URUN


def test_a_launch_on_a_terminal_imports_nothing_more(running: Instance) -> None:
    ours, theirs = pty.openpty()
    try:
        result = subprocess.run(
            launch(running, "sh", "-c", "tty; exit 4"),
            env=running.environment,
            stdin=theirs,
            stdout=theirs,
            stderr=subprocess.PIPE,
            text=True,
            timeout=30,
            check=False,
        )
        assert result.returncode == 4, result.stderr
        assert b"/dev/" in os.read(ours, 1000)
    finally:
        os.close(ours)
        os.close(theirs)
    assert imported(result.stderr) - bare("-c", "pass") <= URUN


def test_a_keeper_at_work_imports_nothing_but_this(tmp_path: Path) -> None:
    keeper = KeeperProcess(tmp_path / "runner", trace_imports=True)
    try:
        agent = keeper.connect()
        agent.spawn(1, keeper.shell("echo out; exit 3"))
        tty = {"rows": 24, "columns": 80, "attributes": None, "stderr": False}
        agent.spawn(2, keeper.shell("echo out; exit 3", tty=tty))
        agent.wait_end(1)
        agent.wait_end(2)
    finally:
        keeper.end()
    found = imported(keeper.log())
    assert "updraft.runner.keeper.keeper" in found
    assert found - bare("-I", "-m", "this") <= KEEPER
