"""What can be seen of an instance from outside: its database, its files, its processes."""

import contextlib
import json
import os
import signal
import sqlite3
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.waiting import until
from updraft.testing.instance import Instance

ENDED = frozenset({"SUCCESS", "FAILURE", "EXPIRED", "CANCELLED"})


@dataclass(frozen=True, slots=True)
class Kept:
    """What an instance keeps of jobs; equal before and after what changes nothing."""

    jobs: tuple[str, ...]
    events: int
    files: tuple[str, ...]


def rows(own: Instance, query: str, *arguments: object) -> list[dict[str, Any]]:
    """Read the instance's database, none when it is not there."""
    databases = list(own.home.glob("state/*/updraft.db"))
    if not databases:
        return []
    with contextlib.closing(sqlite3.connect(f"file:{databases[0]}?mode=ro", uri=True)) as database:
        database.row_factory = sqlite3.Row
        try:
            return [dict(row) for row in database.execute(query, arguments)]
        except sqlite3.OperationalError as error:
            if "no such table" in str(error):
                return []
            raise


def jobs(own: Instance) -> list[dict[str, Any]]:
    """Return all jobs, oldest first."""
    return rows(own, "SELECT * FROM jobs ORDER BY serial")


def events(own: Instance) -> list[dict[str, Any]]:
    """Return all events, oldest first."""
    return rows(own, "SELECT * FROM events ORDER BY serial")


def last_job(own: Instance) -> dict[str, Any]:
    """Return the newest job."""
    return jobs(own)[-1]


def kept(own: Instance) -> Kept:
    """Return what is kept of jobs now."""
    files = sorted(str(path) for path in own.home.glob("state/*/logs/**/*"))
    return Kept(tuple(job["id"] for job in jobs(own)), len(events(own)), tuple(files))


def wait_state(own: Instance, *states: str, seconds: float = 20.0) -> dict[str, Any]:
    """Wait until the newest job is stored in one of these states, and return it."""

    def look() -> dict[str, Any] | None:
        found = jobs(own)
        return found[-1] if found and found[-1]["state"] in states else None

    found = until(look, f"the newest job to be {' or '.join(states)}", seconds)
    assert found is not None
    return found


def status(own: Instance) -> dict[str, Any]:
    """Return ``updraft status --json``."""
    result = own.run("updraft", "status", "--json")
    assert result.returncode == 0, result.stderr
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


def one_line(result: subprocess.CompletedProcess[bytes]) -> str:
    """Return what a failed ``urun`` said, which must be one line, with nothing on stdout."""
    assert result.returncode == 125, result
    assert result.stdout == b""
    text = result.stderr.decode()
    assert text.count("\n") == 1, text
    assert text.endswith("\n")
    assert "Traceback" not in text
    return text


def only(own: Instance, role: str) -> int:
    """Return the id of the one process of a role."""
    (pid,) = own.processes(role)
    return pid


def another(own: Instance, role: str, than: int, seconds: float = 20.0) -> int:
    """Wait until another process than ``than`` has a role, alone, and return its id."""
    return until(
        lambda: next(
            (pid for pid in own.processes(role) if own.processes(role) == [pid] != [than]), 0
        ),
        f"another {role} than {than}",
        seconds,
    )


def kill(pid: int) -> None:
    """Kill one process as ``kill -9`` does."""
    os.kill(pid, signal.SIGKILL)


def is_alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    return text[text.rindex(b")") + 2 : text.rindex(b")") + 3] not in (b"Z", b"X")


def environment_of(pid: int) -> dict[str, str]:
    """Return the environment that a process was started with."""
    entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    pairs = [os.fsdecode(entry).partition("=") for entry in entries if entry]
    return {key: value for key, _, value in pairs}


def status_field(pid: int, name: str) -> str:
    """Return a field of a process's ``/proc/PID/status``."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return value.strip()
    raise KeyError(name)


def descriptors_of(pid: int) -> dict[int, str]:
    """Return what a process holds open."""
    held = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            held[int(entry.name)] = str(entry.readlink())
    return held


def stat_field(pid: int, index: int) -> int:
    """Return a numeric field of ``/proc/PID/stat``, counted from 0 as proc(5) does from 1."""
    text = Path(f"/proc/{pid}/stat").read_bytes()
    return int(text[text.rindex(b")") + 2 :].split()[index - 2])


def session_of(pid: int) -> int:
    """Return a process's session."""
    return stat_field(pid, 5)


def terminal_of(pid: int) -> int:
    """Return the device number of a process's controlling terminal, 0 for none."""
    return stat_field(pid, 6)


def mode_of(path: Path) -> int:
    """Return a file's permission bits."""
    return stat.S_IMODE(path.lstat().st_mode)


def last_words(process: subprocess.Popen[bytes], seconds: float = 10.0) -> str:
    """Return how a client ended that was not to, and what it said."""
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        return "the client still runs"
    said = process.stderr.read() if process.stderr is not None else b""
    return f"the client ended with {code}: {said.decode(errors='replace')!r}"


def type_into(process: subprocess.Popen[bytes], data: bytes) -> None:
    """Write to a client's stdin; fail with its last words if it ended before."""
    assert process.stdin is not None
    try:
        process.stdin.write(data)
        process.stdin.flush()
    except BrokenPipeError:
        raise AssertionError(last_words(process)) from None


@contextlib.contextmanager
def client(own: Instance, *words: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``urun`` with pipes for a ``with`` block; it is killed at the end if it still runs."""
    options = {
        "stdin": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "env": own.environment,
        **options,
    }
    process = subprocess.Popen(own.command("urun", *words), **options)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        process.wait()
