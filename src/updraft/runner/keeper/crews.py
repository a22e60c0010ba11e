"""Crews: the tasks of one array on this runner, a few at a time, in the order of their grants.

The keeper asks this module for what concerns a crew, and is asked by it to start a task when there
is room.  What happens is told in groups: most tasks of an array are short, and one message for many
costs no more than one for each.
"""

from __future__ import annotations

import time
from collections import deque

from updraft.wire import frames

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any, Protocol

    from updraft.runner.keeper.task import Task

    class Host(Protocol):
        """The keeper, as its crews see it."""

        def start(self, attempt: int, spec: dict[str, Any]) -> None: ...
        def send(self, data: bytes) -> None: ...


_GATHER_SECONDS = 0.005
"""How long starts and ends are gathered before they are told."""


class Crew:
    """The tasks of one array that this runner was granted."""

    def __init__(self, number: int, spec: dict[str, Any]) -> None:
        self.number = number
        self.spec = spec
        self.width = spec["width"]
        self.waiting: deque[int] = deque()
        self.tasks: dict[int, tuple[int, int]] = {}
        """The index and the number of each attempt that was not forgotten."""
        self.running: set[int] = set()

    def task_spec(self, attempt: int) -> dict[str, Any]:
        """Return what one task is started with."""
        index, number = self.tasks[attempt]
        told = b"\0UPDRAFT_TASK_INDEX=%d\0UPDRAFT_TASK_COUNT=%d\0UPDRAFT_ATTEMPT=%d"
        environment = self.spec["environment"] + told % (index, self.spec["count"], number)
        folder = self.spec["folder"] + b"/%d.%d" % (index, number)
        return {**self.spec, "environment": environment, "folder": folder, "crew": self.number}


class Crews:
    """All crews of one keeper."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._crews: dict[int, Crew] = {}
        self._of: dict[int, Crew] = {}
        self._ended: dict[int, dict[str, Any]] = {}
        self._starts: dict[int, dict[int, tuple[int, int]]] = {}
        self._ends: dict[int, list[tuple[int, dict[str, Any]]]] = {}
        self._filling = False
        self.due: float | None = None
        """When to call ``tell`` (monotonic seconds), None while there is nothing to tell."""

    # -- what the server says

    def open(self, number: int, spec: dict[str, Any]) -> None:
        """Make a crew; one that is known only gets its width."""
        crew = self._crews.get(number)
        if crew is None:
            self._crews[number] = Crew(number, spec)
        else:
            crew.width = spec["width"]
            self._fill(crew)

    def feed(self, number: int, body: dict[str, Any]) -> None:
        """Take attempts for a crew; those that are known are passed over (P2)."""
        crew = self._crews.get(number)
        if crew is None:
            return  # its CREW went to an earlier keeper; the server finds out by our report
        crew.width = body["width"]
        for attempt, index, task_number in body["tasks"]:
            if attempt not in self._of and attempt not in self._ended:
                crew.tasks[attempt] = (index, task_number)
                crew.waiting.append(attempt)
                self._of[attempt] = crew
        self._fill(crew)

    def limit(self, number: int, limit_ms: int | None) -> None:
        """Change the time limit of what a crew has not started yet."""
        self._crews[number].spec["deadline_ms"] = limit_ms

    def holds(self, number: int) -> bool:
        """Whether this is the number of a crew."""
        return number in self._crews

    def attempts(self, number: int) -> list[int]:
        """Return the attempts of a crew that run."""
        return list(self._crews[number].running)

    def withdraw(self, attempts: Iterable[int], why: str) -> None:
        """End those of these attempts that have not started."""
        for attempt in attempts:
            crew = self._of.get(attempt)
            if crew is not None and attempt in crew.waiting:
                crew.waiting.remove(attempt)
                end = {"unstarted": True, "why": why, "at": time.time_ns()}
                self._note_end(crew, attempt, {**end, "stdout": 0, "stderr": 0})

    def withdraw_all(self, why: str, number: int | None = None) -> None:
        """End all that has not started, of one crew or of all."""
        for crew in list(self._crews.values()):
            if number in (None, crew.number):
                self.withdraw(list(crew.waiting), why)

    def forget(self, number: int) -> bool:
        """The server needs no more of an attempt or a crew; return whether it was one of ours."""
        crew = self._of.pop(number, None)
        if crew is not None:
            crew.tasks.pop(number, None)
            self._ended.pop(number, None)
            return True
        if number in self._crews and not self._crews[number].tasks:
            del self._crews[number]
            return True
        return self._ended.pop(number, None) is not None

    # -- what its tasks do

    def is_ours(self, attempt: int) -> bool:
        """Whether an attempt is of a crew."""
        return attempt in self._of

    def started(self, task: Task) -> None:
        """A task's command runs."""
        crew = self._of[task.attempt]
        if task.pid is not None and task.started_at is not None:
            starts = self._starts.setdefault(crew.number, {})
            starts[task.attempt] = (task.pid, task.started_at)
            self._gather()

    def ended(self, attempt: int, end: dict[str, Any]) -> None:
        """A task has ended, or could not be started: the next one has its place."""
        crew = self._of[attempt]
        crew.running.discard(attempt)
        pid, at = self._starts.get(crew.number, {}).pop(attempt, (None, None))
        if pid is not None:
            end = {**end, "pid": pid, "started": at}
        self._note_end(crew, attempt, end)
        self._fill(crew)

    def adopt(self, attempt: int, intent: dict[str, Any], end: dict[str, Any]) -> None:
        """An earlier keeper left this end of an attempt of a crew's."""
        self._ended[attempt] = {**intent, "end": end}

    def _note_end(self, crew: Crew, attempt: int, end: dict[str, Any]) -> None:
        self._ended[attempt] = {**self._identity(crew, attempt), "end": end}
        self._ends.setdefault(crew.number, []).append((attempt, end))
        self._gather()

    def _fill(self, crew: Crew) -> None:
        if self._filling:
            return  # a task that could not be started has ended: the loop below goes on
        self._filling = True
        try:
            while crew.waiting and len(crew.running) < crew.width:
                attempt = crew.waiting.popleft()
                crew.running.add(attempt)
                if "refused" in crew.spec:
                    self.ended(attempt, _refusal(crew.spec["refused"]))
                    continue
                self._host.start(attempt, crew.task_spec(attempt))
        finally:
            self._filling = False

    # -- what the server is told

    def _gather(self) -> None:
        if self.due is None:
            self.due = time.monotonic() + _GATHER_SECONDS

    def tell(self) -> None:
        """Tell what has happened, a message for each crew and kind."""
        self.due = None
        starts, self._starts = self._starts, {}
        ends, self._ends = self._ends, {}
        for number, began in starts.items():
            told = [[attempt, pid, at] for attempt, (pid, at) in began.items()]
            if told:
                self._host.send(frames.message(frames.STARTS, {"starts": told}, number << 2))
        for number, over in ends.items():
            body = {"ends": [[attempt, end] for attempt, end in over]}
            self._host.send(frames.message(frames.ENDS, body, number << 2))

    def report(self) -> Iterator[dict[str, Any]]:
        """Yield what an agent that knows nothing has to know of attempts that do not run."""
        for crew in self._crews.values():
            for attempt in crew.waiting:
                yield {"attempt": attempt, **self._identity(crew, attempt), "waiting": True}
        for attempt, report in self._ended.items():
            yield {"attempt": attempt, **report, "waiting": False}

    def identity(self, attempt: int) -> dict[str, Any]:
        """Return what of a report says whose an attempt is."""
        return self._identity(self._of[attempt], attempt)

    @staticmethod
    def _identity(crew: Crew, attempt: int) -> dict[str, Any]:
        index, number = crew.tasks[attempt]
        return {
            "crew": crew.number,
            "index": index,
            "number": number,
            "job": crew.spec["job"],
            "folder": crew.spec["folder"] + b"/%d.%d" % (index, number),
        }

    @property
    def is_empty(self) -> bool:
        """Whether nothing of a crew waits to be started or told."""
        return not self._ended and not any(crew.tasks for crew in self._crews.values())


def _refusal(why: str) -> dict[str, Any]:
    return {"refused": "isolation", "errno": 0, "message": why, "stdout": 0, "stderr": 0}
