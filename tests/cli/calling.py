"""Calling Updraft's commands, and jobs that go on exactly when a test says so."""

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.waiting import until
from updraft.testing.instance import Instance

SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Said:
    """What a command wrote, and its exit code."""

    out: str
    err: str
    code: int

    @property
    def error(self) -> str:
        """Its one line of talk, which came without data."""
        assert self.out == ""
        assert self.err.count("\n") == 1, self.err
        assert "Traceback" not in self.err
        return self.err.removesuffix("\n")


def call(own: Instance, program: str, *arguments: str, data: bytes | None = None) -> Said:
    """Run a command to its end."""
    result = own.run(program, *arguments, data=data, timeout=SECONDS)
    return Said(result.stdout.decode(), result.stderr.decode(), result.returncode)


def updraft(own: Instance, *arguments: str) -> Said:
    """Run ``updraft …`` to its end."""
    return call(own, "updraft", *arguments)


def ask(own: Instance, *arguments: str) -> Any:
    """Return what ``updraft … --json`` says, which must succeed and say nothing else."""
    said = updraft(own, *arguments, "--json")
    assert (said.err, said.code) == ("", 0)
    return json.loads(said.out)


def submit(own: Instance, *arguments: str) -> str:
    """Leave a job running and return its id."""
    said = call(own, "ubatch", *arguments)
    assert (said.err, said.code) == ("", 0)
    assert re.fullmatch(r"[a-z0-9]{10}\n", said.out)
    return said.out.strip()


def ended(own: Instance, *arguments: str) -> str:
    """Run a job to its end and return its id."""
    job = submit(own, *arguments)
    updraft(own, "job", "wait", job)
    return job


def start(own: Instance, program: str, *arguments: str) -> "subprocess.Popen[bytes]":
    """Start a command whose output the test reads while it runs."""
    return subprocess.Popen(
        own.command(program, *arguments),
        env=own.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,  # what a test does not read itself is there for `finish`
    )


def finish(process: "subprocess.Popen[bytes]") -> Said:
    """Return the rest of what a started command says, and its exit code."""
    out, err = process.communicate(timeout=SECONDS)
    return Said(out.decode(), err.decode(), process.returncode)


def interrupt(process: "subprocess.Popen[bytes]") -> Said:
    """Press Ctrl-C on a started command."""
    process.send_signal(signal.SIGINT)
    return finish(process)


def wait_state(own: Instance, job: str, *states: str) -> dict[str, Any]:
    """Wait until a job is in one of these states; return it."""

    def look() -> dict[str, Any] | None:
        found: dict[str, Any] = ask(own, "job", "show", job)
        return found if found["state"] in states else None

    found = until(look, f"job {job} to be {' or '.join(states)}", SECONDS)
    assert found is not None
    return found


class Gate:
    """A place where a shell command waits until the test opens it, and what it reads there.

    For one use: a shell that came again at once could meet the closing of the first.
    """

    def __init__(self, folder: Path, name: str = "gate") -> None:
        self.path = folder / name
        os.mkfifo(self.path)

    def read(self) -> str:
        """Return the shell's words for reading one line at the gate into ``$line``."""
        return f"read line < {self.path}"

    def open(self, line: str = "") -> None:
        """Let whoever waits at the gate go on; waits until somebody is there."""
        with self.path.open("w") as gate:
            gate.write(line + "\n")


@contextmanager
def served(
    own: Instance, settings: str, says: str = "serving at"
) -> Iterator[subprocess.Popen[bytes]]:
    """Serve in the foreground with this updraft.toml; begins once the log says something."""
    config = own.home / "config"
    config.mkdir(mode=0o700)
    (config / "updraft.toml").write_text(settings)
    log = own.home / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            own.command("updraft", "serve"), env=own.environment,
            stdin=subprocess.DEVNULL, stdout=out, stderr=out,
        )  # fmt: skip
    try:
        until(lambda: says in log.read_text(), f"the log to say {says!r}", 30)
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
