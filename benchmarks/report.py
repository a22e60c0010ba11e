"""What a benchmark found: rows of one measured figure each, with what was asked of it.

Values only; `render.py` turns them into text, Markdown and JSON.
"""

from dataclasses import dataclass
from enum import StrEnum


class Unit(StrEnum):
    """What a row's value counts. The value of each member is how the unit is written."""

    MILLISECONDS = "ms"
    SECONDS = "s"
    MB_PER_SECOND = "MB/s"  # 10^6 bytes
    TASKS_PER_SECOND = "tasks/s"
    MB = "MB"  # 10^6 bytes
    RATIO = "×"
    PERCENT = "%"
    COUNT = ""


class Verdict(StrEnum):
    """How a value stands to what was asked of it."""

    AIM_MET = "aim met"
    MET = "met"
    MISSED = "MISSED"
    NOTED = ""  # nothing was asked: a peer, a floor, or context
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Asked:
    """A limit in the row's unit that a value must keep, and perhaps a better one to aim at."""

    must: float
    aim: float | None = None
    higher_is_better: bool = False
    strictly: bool = False  # `must` itself is too much

    def verdict(self, value: float) -> Verdict:
        if self.aim is not None and self._keeps(value, self.aim):
            return Verdict.AIM_MET
        return Verdict.MET if self._keeps(value, self.must) else Verdict.MISSED

    def _keeps(self, value: float, limit: float) -> bool:
        if self.strictly and value == limit:
            return False
        return value >= limit if self.higher_is_better else value <= limit


@dataclass(frozen=True)
class Row:
    """One figure. `value` is None where it could not be taken; `note` then says why."""

    name: str
    value: float | None
    unit: Unit
    asked: Asked | None = None
    note: str = ""

    @property
    def verdict(self) -> Verdict:
        if self.value is None:
            return Verdict.SKIPPED
        return self.asked.verdict(self.value) if self.asked else Verdict.NOTED


def skipped(name: str, reason: str) -> Row:
    return Row(name, None, Unit.COUNT, note=reason)


@dataclass(frozen=True)
class Table:
    """A benchmark's outcome. `title` says what was done, how often."""

    name: str
    title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Report:
    """A whole run: facts about the machine and the software, then the tables."""

    facts: tuple[tuple[str, str], ...]
    tables: tuple[Table, ...]


class BenchmarkError(Exception):
    """The benchmark could not run to its end; the message says why in one line."""


class PeerUnavailable(Exception):
    """What Updraft is compared with can't be had on this machine; the message says why."""
