"""Starting commands and timing them: one run, and runs of two commands in turn.

Commands start with `posix_spawn`, whose cost does not grow with this process.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO

from benchmarks.report import BenchmarkError

SETTLE_SECONDS = 0.01
"""A pause between two runs, so that one's last bookkeeping is not charged to the next."""


@dataclass(frozen=True)
class Command:
    """A command as it is started.

    `argv[0]` is a full path: a virtual environment's interpreter that is called by its bare name
    first searches PATH for itself, which slows its start.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True)
class Samples:
    """Durations in seconds."""

    seconds: tuple[float, ...]

    @property
    def p50(self) -> float:
        return statistics.median(self.seconds)

    @property
    def p95(self) -> float:
        return self._last_quantile(20)

    @property
    def p99(self) -> float:
        return self._last_quantile(100)

    def _last_quantile(self, parts: int) -> float:
        if len(self.seconds) < 2:
            return self.seconds[0]
        return statistics.quantiles(self.seconds, n=parts, method="inclusive")[-1]


@dataclass(frozen=True)
class Pairs:
    """Two commands' durations, taken in turn, so that a machine's drift falls on both alike."""

    ours: Samples
    peer: Samples

    @property
    def median_ratio(self) -> float:
        return statistics.median(ours / peer for ours, peer in self._pairs())

    @property
    def median_difference(self) -> float:
        return statistics.median(ours - peer for ours, peer in self._pairs())

    def _pairs(self) -> Iterable[tuple[float, float]]:
        return zip(self.ours.seconds, self.peer.seconds, strict=True)


def time_in_turn(ours: Command, peer: Command, rounds: int) -> Pairs:
    """Runs the two `rounds` times each, A B A B, after two runs of each that are not counted."""
    for command in (ours, peer) * 2:
        seconds_of(command)
    taken: list[tuple[float, float]] = []
    for _ in range(rounds):
        time.sleep(SETTLE_SECONDS)
        of_ours = seconds_of(ours)
        time.sleep(SETTLE_SECONDS)
        taken.append((of_ours, seconds_of(peer)))
    return Pairs(
        Samples(tuple(pair[0] for pair in taken)), Samples(tuple(pair[1] for pair in taken))
    )


def seconds_of(command: Command) -> float:
    """How long the command takes from spawn to wait; stdin and stdout are /dev/null."""
    with tempfile.TemporaryFile() as talk:
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_DUP2, talk.fileno(), 2),
        ]
        start = time.perf_counter()
        pid = os.posix_spawn(command.argv[0], command.argv, command.env, file_actions=actions)
        _, status = os.waitpid(pid, 0)
        elapsed = time.perf_counter() - start
        check_ended_well(command, os.waitstatus_to_exitcode(status), talk)
    return elapsed


def check_ended_well(command: Command, exit_code: int, talk: BinaryIO) -> None:
    """Raises BenchmarkError with the last line that the command said on its stderr, `talk`."""
    if exit_code != 0:
        talk.seek(0)
        lines = talk.read().decode(errors="replace").strip().splitlines()
        said = f": {lines[-1]}" if lines else ""
        raise BenchmarkError(f"`{command.name}` ended with exit code {exit_code}{said}")
