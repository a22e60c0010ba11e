"""echo: how long a keystroke takes to be answered, on `urun`'s terminal and on a bare one.

Both sessions are open at once, each under a pseudo-terminal of this process; keys go to them in
turn. The program answers in upper case, so that no echo of a terminal on the way can pass for its
answer.
"""

import fcntl
import os
import pty
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.install import Installation, fresh_instance
from benchmarks.programs import shout
from benchmarks.report import Asked, BenchmarkError, Row, Table, Unit
from benchmarks.timing import Command, Pairs, Samples

_ADDED = Asked(must=2.0)
_KEYS = b"abcdefghijklmnoprstuvwxyz"  # without q, which ends the program
_BETWEEN_KEYS_SECONDS = 0.01
_ANSWER_SECONDS = 10.0
_START_SECONDS = 30.0


def run(installation: Installation, folder: Path, *, quick: bool) -> Table:
    """Needs a quarter of a minute, or a few seconds when quick."""
    keys = 100 if quick else 500
    program = (sys.executable, "-I", "-S", shout.__file__)
    with fresh_instance(installation, folder / "home") as instance:
        instance.warm_up()
        bare = Command("shout.py", program, instance.env)
        with _terminal(instance.urun(*program)) as ours, _terminal(bare) as local:
            pairs = _in_turn(ours, local, keys)
    return Table(
        "echo", f"keystroke to answer, {keys} interleaved pairs of keys", tuple(_rows(pairs))
    )


@dataclass(frozen=True)
class _Terminal:
    """The master side of a pseudo-terminal on which a program runs."""

    name: str
    master: int

    def seconds_to_answer(self, key: int) -> float:
        start = time.perf_counter()
        os.write(self.master, bytes([key]))
        answer = self._read(_ANSWER_SECONDS)
        elapsed = time.perf_counter() - start
        if answer != bytes([key]).upper():
            raise BenchmarkError(f"`{self.name}` answered {answer!r} to the key {chr(key)!r}")
        return elapsed

    def wait_for(self, words: bytes) -> None:
        seen = b""
        while not seen.endswith(words):
            seen += self._read(_START_SECONDS)

    def _read(self, seconds: float) -> bytes:
        ready, _, _ = select.select([self.master], [], [], seconds)
        if not ready:
            raise BenchmarkError(f"`{self.name}` said nothing for {seconds:.0f} s")
        try:
            return os.read(self.master, 4096)
        except OSError as error:  # how Linux tells of the end of a terminal
            raise BenchmarkError(f"`{self.name}` ended early") from error


@contextmanager
def _terminal(command: Command) -> Iterator[_Terminal]:
    """The command on a terminal of its own, waiting for keys; told to quit at the end."""
    pid, master = pty.fork()
    if pid == 0:
        try:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
            os.execve(command.argv[0], command.argv, command.env)
        finally:
            os._exit(127)
    try:
        terminal = _Terminal(command.name, master)
        terminal.wait_for(b"READY")
        yield terminal
        os.write(master, b"q")
        _wait_for_end(pid)
    finally:
        os.close(master)
        _end(pid)


def _wait_for_end(pid: int) -> None:
    deadline = time.monotonic() + _ANSWER_SECONDS
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() > deadline:
            return
        time.sleep(0.01)


def _end(pid: int) -> None:
    """Ends our child, which nobody has waited for yet, so that the number is still its own."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _in_turn(ours: _Terminal, local: _Terminal, keys: int) -> Pairs:
    taken: list[tuple[float, float]] = []
    for number in range(-10, keys):  # ten of each are not counted
        key = _KEYS[number % len(_KEYS)]
        time.sleep(_BETWEEN_KEYS_SECONDS)
        of_ours = ours.seconds_to_answer(key)
        time.sleep(_BETWEEN_KEYS_SECONDS)
        of_local = local.seconds_to_answer(key)
        if number >= 0:
            taken.append((of_ours, of_local))
    return Pairs(
        Samples(tuple(pair[0] for pair in taken)), Samples(tuple(pair[1] for pair in taken))
    )


def _rows(pairs: Pairs) -> Iterator[Row]:
    ms = Unit.MILLISECONDS
    yield Row("through urun, p50", pairs.ours.p50 * 1000, ms)
    yield Row("through urun, p95", pairs.ours.p95 * 1000, ms)
    yield Row("local terminal, p50", pairs.peer.p50 * 1000, ms, note="the floor")
    yield Row("local terminal, p95", pairs.peer.p95 * 1000, ms)
    yield Row("added by urun, median of the pairs", pairs.median_difference * 1000, ms, _ADDED)
