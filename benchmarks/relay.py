"""relay: how fast a program's stdout comes through `urun` into a pipe, and what memory that takes.

The floor is the same program writing into a bare pipe to the same reader. Time counts from the
command's start to its end. The digest is checked in a run of its own, so that hashing slows no
measured one.
"""

import hashlib
import os
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import memory, process
from benchmarks.install import Installation, Instance, Pids, fresh_instance
from benchmarks.programs import emit
from benchmarks.report import Asked, BenchmarkError, Row, Table, Unit
from benchmarks.timing import Command, Pairs, Samples, check_ended_well

_THROUGHPUT = Asked(must=300, aim=500, higher_is_better=True)
_PEAK = Asked(must=150, strictly=True)
_READ_BYTES = 1 << 20
_SLOW_BYTES_PER_SECOND = 20_000_000
_SLOW_READ_BYTES = 250_000

Eater = Callable[[bytes], object]
"""Is given each part as it is read."""


def run(installation: Installation, folder: Path, *, quick: bool) -> Table:
    """Needs two minutes, or a quarter of that when quick."""
    total = 1 << (28 if quick else 30)
    times = 2 if quick else 5
    memory.touch((times + 3) * total)
    with fresh_instance(installation, folder / "home") as instance:
        instance.warm_up()
        pids = instance.pids()
        fast = _Peaks()
        pairs = _in_turn(instance, total, times, fast)
        rows = [*_speed_rows(pairs, total, times), _digest_row(instance, total)]
        rows += fast.rows(pids, "")
        rows += _slow_rows(instance, pids, folder / "progress", total, 2.0 if quick else 5.0)
        if instance.pids() != pids:
            raise BenchmarkError(
                "a background process ended and was replaced in the middle of the run"
            )
    return Table(
        "relay", f"{total >> 20} MiB of stdout into a pipe, {times} interleaved pairs", tuple(rows)
    )


@dataclass
class _Peaks:
    """Highest memory of the clients so far. The kernel keeps the others' until they end."""

    client_bytes: int = 0

    def saw(self, client_pid: int) -> None:
        with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            self.client_bytes = max(self.client_bytes, process.peak_resident_bytes(client_pid))

    def rows(self, pids: Pids, when: str) -> Iterator[Row]:
        peaks = [("client", self.client_bytes)]
        peaks += [(name, process.peak_resident_bytes(pid)) for name, pid in pids.named()]
        for name, peak in peaks:
            yield Row(f"peak memory, {name}{when}", peak / 1e6, Unit.MB, _PEAK)


def _in_turn(instance: Instance, total: int, times: int, peaks: _Peaks) -> Pairs:
    ours, bare = _commands(instance, total)
    taken = [
        (_seconds_to_read(ours, total, peaks=peaks), _seconds_to_read(bare, total))
        for _ in range(times)
    ]
    return Pairs(
        Samples(tuple(pair[0] for pair in taken)), Samples(tuple(pair[1] for pair in taken))
    )


def _commands(instance: Instance, total: int, *more: str) -> tuple[Command, Command]:
    """The program through `urun`, and bare."""
    program = (sys.executable, "-I", "-S", emit.__file__, str(total), *more)
    return instance.urun(*program), Command("emit.py", program, instance.env)


def _speed_rows(pairs: Pairs, total: int, times: int) -> Iterator[Row]:
    rate = Unit.MB_PER_SECOND
    slowest = total / 1e6 / max(pairs.ours.seconds)
    note = f"median of {times}, slowest {slowest:,.0f} MB/s"
    yield Row("through urun", total / 1e6 / pairs.ours.p50, rate, _THROUGHPUT, note)
    yield Row("bare pipe", total / 1e6 / pairs.peer.p50, rate, note="the floor")
    yield Row("urun ÷ bare pipe, time", pairs.median_ratio, Unit.RATIO)


def _digest_row(instance: Instance, total: int) -> Row:
    digests = []
    for command in _commands(instance, total):
        digest = hashlib.sha256()
        _seconds_to_read(command, total, digest.update)
        digests.append(digest.digest())
    if digests[0] != digests[1]:
        raise BenchmarkError(
            "what came through urun is not what the program wrote: the digests differ"
        )
    return Row("bytes whose SHA-256 is as written", float(total), Unit.COUNT)


def _slow_rows(
    instance: Instance, pids: Pids, progress: Path, total: int, seconds: float
) -> Iterator[Row]:
    """A reader of 20 MB/s for a while, which then takes the rest as fast as it comes."""
    progress.write_bytes(bytes(8))
    pace = _Pace(progress, seconds)
    peaks = _Peaks()
    ours, _ = _commands(instance, total, str(progress))
    _seconds_to_read(ours, total, pace.eat, peaks, read_bytes=_SLOW_READ_BYTES)
    yield from peaks.rows(pids, f", {_SLOW_BYTES_PER_SECOND // 1_000_000} MB/s reader")
    note = f"after {seconds:.0f} s"
    yield Row(
        "how far the writer ran ahead of that reader", pace.ahead_bytes / 1e6, Unit.MB, note=note
    )


@dataclass
class _Pace:
    """Slows its caller to the slow reader's rate for `seconds`, then notes how far ahead the writer
    is."""

    progress: Path
    seconds: float
    started: float = field(default_factory=time.monotonic)
    eaten: int = 0
    ahead_bytes: int = 0
    over: bool = False

    def eat(self, part: bytes) -> None:
        if self.over:
            return
        if self.eaten == 0:
            self.started = time.monotonic()
        self.eaten += len(part)
        due = self.started + self.eaten / _SLOW_BYTES_PER_SECOND
        time.sleep(max(0.0, due - time.monotonic()))
        if time.monotonic() - self.started >= self.seconds:
            self.over = True
            self.ahead_bytes = struct.unpack("<Q", self.progress.read_bytes())[0] - self.eaten


def _seconds_to_read(
    command: Command,
    total: int,
    eat: Eater | None = None,
    peaks: _Peaks | None = None,
    read_bytes: int = _READ_BYTES,
) -> float:
    """Runs the command with its stdout into a pipe, and reads all of it: exactly `total` bytes."""
    seen = 0
    with tempfile.TemporaryFile() as talk:
        start = time.perf_counter()
        with subprocess.Popen(
            command.argv,
            env=command.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=talk,
            bufsize=0,
        ) as started:
            assert started.stdout is not None
            with _watching(started.pid, peaks):
                while part := os.read(started.stdout.fileno(), read_bytes):
                    seen += len(part)
                    if eat is not None:
                        eat(part)
            exit_code = started.wait()
        elapsed = time.perf_counter() - start
        check_ended_well(command, exit_code, talk)
    if seen != total:
        raise BenchmarkError(f"`{command.name}` brought {seen:,} bytes instead of {total:,}")
    return elapsed


@contextmanager
def _watching(pid: int, peaks: _Peaks | None) -> Iterator[None]:
    """Looks at the client's peak ten times a second: the kernel forgets it when the client ends.

    Its `ru_maxrss` would not do: it counts what the process that forked it had in memory.
    """
    if peaks is None:
        yield
        return
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            peaks.saw(pid)

    watcher = threading.Thread(target=watch, name="peak-memory")
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
