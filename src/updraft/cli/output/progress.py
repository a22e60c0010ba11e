"""A line on the terminal that says how far an array is."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

if TYPE_CHECKING:
    from updraft.wire.schemas import TaskCounts


class Progress:
    """A bar on stderr, for a ``with`` block; ``shown``: whether there is one at all."""

    def __init__(self, program: str, *, shown: bool) -> None:
        self._program = program
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[counts]}"),
            TimeRemainingColumn(),
            console=Console(file=sys.stderr),
            transient=True,
            disable=not shown,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._bar.add_task("tasks", total=None, counts="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, tasks: TaskCounts) -> None:
        """Show the counts of now."""
        counts = f"{tasks.running} running"
        if tasks.not_ok:
            counts += f", {tasks.not_ok} not ok"
        self._bar.update(
            self._task, total=tasks.total, completed=tasks.ok + tasks.not_ok, counts=counts
        )

    def say(self, message: str) -> None:
        """Say something in a line of its own."""
        sys.stderr.write(f"{self._program}: {message}\n")
