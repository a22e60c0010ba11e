"""What a job waits for: the ends of other jobs, or of tasks of theirs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

PAIRED: Literal["*"] = "*"
"""In place of a task's index: each task of an array waits for the other's with its own index."""

MOST_EDGES = 1000
"""Of one job."""


class On(StrEnum):
    """After what end."""

    ANY = "any"
    OK = "ok"
    """SUCCESS and exit code 0."""
    FAIL = "fail"
    """Any other."""


@dataclass(frozen=True, slots=True)
class Edge:
    """One end that a job waits for."""

    job: str
    on: On = On.ANY
    task: int | Literal["*"] | None = None
    """The index of one of its tasks; None: the whole job."""

    def met_by(self, *, ok: bool) -> bool:
        """Whether an end lets the job run; one that does not never will."""
        return self.on is On.ANY or ok is (self.on is On.OK)

    def why_never(self) -> str:
        """Return why the job, or its task, cannot run any more once an end did not meet it."""
        what = f"its task of job {self.job}" if self.task == PAIRED else str(self)
        if self.on is On.OK:
            return f"{what} is not ok, and this one was to run after it was ok"
        return f"{what} is ok, and this one was to run after it was not"

    def __str__(self) -> str:
        if self.task is None:
            return f"job {self.job}"
        return f"tasks of job {self.job}" if self.task == PAIRED else f"task {self.job}/{self.task}"


def why_waiting(edges: Iterable[Edge]) -> str:
    """Return what a person is told of these unmet edges, of which there is one at least."""
    first, *others = edges
    if not others:
        return f"waiting for {first}"
    many = len({first.job, *(each.job for each in others)})
    if many == 1:
        return f"waiting for {len(others) + 1} tasks, first {str(first).partition(' ')[2]}"
    return f"waiting for {many} jobs, first {first.job}"


def written(edges: Iterable[Edge]) -> str | None:
    """Return edges as they are stored; None: there are none."""
    listed = [{"job": each.job, "task": each.task, "on": each.on} for each in edges]
    return json.dumps(listed) if listed else None


def read(stored: str | None) -> tuple[Edge, ...]:
    """Return what ``written`` wrote."""
    if stored is None:
        return ()
    return tuple(Edge(each["job"], On(each["on"]), each["task"]) for each in json.loads(stored))
