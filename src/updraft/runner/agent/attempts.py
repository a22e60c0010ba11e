"""What an agent knows of the attempts that its keeper holds."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import Any

from updraft.runner.agent.output import OutputStream
from updraft.runner.keeper import processes
from updraft.wire import frames

OUTPUTS = (("stdout", frames.STDOUT), ("stderr", frames.STDERR))


class Attempt:
    """One attempt: the keeper's report, kept up to date, and its output on its way."""

    def __init__(self, serial: int, report: dict[str, Any]) -> None:
        self.serial = serial
        self.report = {"attempt": serial, **report}
        self.folder = os.fsdecode(report["folder"])
        self.outputs = {
            stream: OutputStream(frames.stream_channel(serial, stream), self.folder, name)
            for name, stream in OUTPUTS
        }
        for name, stream in OUTPUTS:
            self.grew(stream, report.get(name, 0))
        self.forgotten = False
        self._started_ticks: int | None = None
        if report.get("pid"):
            self._note_start()
        if report.get("end") is not None:
            self.ended(report["end"])

    @property
    def is_done(self) -> bool:
        """Whether the server needs nothing more of it."""
        return self.forgotten and not any(output.owed for output in self.outputs.values())

    def grew(self, stream: int, length: int) -> None:
        """An output stream has grown in the spool."""
        self.outputs[stream].length = length
        self.report["stdout" if stream == frames.STDOUT else "stderr"] = length

    def started(self, report: dict[str, Any]) -> None:
        """Its command runs."""
        self.report.update(report)
        self._note_start()

    def ended(self, end: dict[str, Any]) -> None:
        """It came to its end."""
        self.report["end"] = end
        for name, stream in OUTPUTS:
            self.grew(stream, end.get(name, 0))

    def detach(self) -> None:
        """Send no more of its output."""
        for output in self.outputs.values():
            output.detach()

    def end_by_force(self) -> None:
        """End its command if that still is what it was: its keeper is dead, and its leader too."""
        pid = self.report.get("pid")
        if pid is None or self.report.get("end") is not None:
            return
        if processes.start_time(pid) == self._started_ticks:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)

    def _note_start(self) -> None:
        self._started_ticks = processes.start_time(self.report["pid"])
