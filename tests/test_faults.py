"""Crash points: those that are named are those that are in the code, and each kills once."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import updraft
from updraft import faults

PROGRAM = "import sys; from updraft import faults; faults.reached(sys.argv[1]); print('lived')"


def run(point: str, folder: Path | None) -> "subprocess.CompletedProcess[bytes]":
    environment = {**os.environ}
    environment.pop("UPDRAFT_FAULTS", None)
    if folder is not None:
        environment["UPDRAFT_FAULTS"] = str(folder)
    command = [sys.executable, "-c", PROGRAM, point]
    return subprocess.run(command, env=environment, capture_output=True, timeout=30, check=False)


def test_every_point_that_is_named_is_in_the_code_once_and_no_other_is() -> None:
    root = Path(next(iter(updraft.__path__)))
    found = [
        point
        for source in root.rglob("*.py")
        for point in re.findall(r"faults\.reached\(\"([^\"]*)\"\)", source.read_text())
    ]
    assert sorted(found) == sorted(faults.POINTS)


def test_an_armed_point_kills_as_kill_9_does_and_fires_once(tmp_path: Path) -> None:
    (tmp_path / "exit-log").touch()
    assert run("exit-log", tmp_path).returncode == -signal.SIGKILL
    assert [file.name for file in tmp_path.iterdir()] == ["exit-log.reached"]
    assert run("exit-log", tmp_path).stdout == b"lived\n"


def test_a_point_that_is_not_armed_does_nothing(tmp_path: Path) -> None:
    (tmp_path / "exit-log").touch()
    assert run("insert-ack", tmp_path).stdout == b"lived\n"
    assert run("exit-log", None).stdout == b"lived\n"
    assert run("exit-log", tmp_path / "no folder").stdout == b"lived\n"
    assert [file.name for file in tmp_path.iterdir()] == ["exit-log"]
