"""What an agent knows of crews: where their tasks' output lies, as far as it has to be carried.

Whether they run or have ended is the keeper's to tell: it is asked anew for each server.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any


class AgentCrews:
    """The crews of a runner, and which of them an attempt is of."""

    def __init__(self) -> None:
        self._folders: dict[int, tuple[str, bytes]] = {}
        self._tasks: dict[int, tuple[int, int, int]] = {}
        self.reported: list[dict[str, Any]] = []
        """What the keeper last told of their attempts."""

    def open(self, number: int, spec: dict[str, Any]) -> None:
        """A crew is sent to the keeper."""
        self._folders[number] = (spec["job"], spec["folder"])

    def feed(self, number: int, tasks: Iterable[list[int]]) -> None:
        """Attempts are sent to a crew."""
        for attempt, index, task_number in tasks:
            self._tasks[attempt] = (number, index, task_number)

    def take_report(self, items: list[dict[str, Any]]) -> None:
        """The keeper tells all that it has of crews."""
        self.reported = items
        for item in items:
            self._tasks[item["attempt"]] = (item["crew"], item["index"], item["number"])
            folder = os.path.dirname(item["folder"])
            self._folders.setdefault(item["crew"], (item["job"], folder))

    def place_of(self, attempt: int) -> dict[str, Any] | None:
        """Return whose an attempt is and where its output lies; None: it is of no crew."""
        if attempt not in self._tasks:
            return None
        crew, index, number = self._tasks[attempt]
        if crew not in self._folders:
            return None
        job, folder = self._folders[crew]
        return {"job": job, "folder": folder + b"/%d.%d" % (index, number), "crew": crew}

    def forget(self, number: int) -> tuple[str, bytes] | None:
        """The server needs no more of an attempt, or of a crew: whose job and folder it returns."""
        self._tasks.pop(number, None)
        return self._folders.pop(number, None)

    def jobs(self) -> set[str]:
        """Return whose tasks there are."""
        return {job for job, _ in self._folders.values()}

    def folders(self) -> list[str]:
        """Return where output of tasks lies."""
        return [os.fsdecode(folder) for _, folder in self._folders.values()]
