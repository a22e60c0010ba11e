"""Processes that run beside a job (``updraft exec``): not stored, and gone with their client."""

from __future__ import annotations

import os
import secrets
from collections.abc import Container
from dataclasses import dataclass
from typing import Any, Protocol

from updraft import errors
from updraft.model.ending import outcome_of
from updraft.model.job import Outcome, name_of
from updraft.server.services.execution import Execution
from updraft.server.services.live import LiveJob, LiveRunner
from updraft.storage.segments import SegmentReader
from updraft.wire import frames

_FIRST_SERIAL = 1 << 60
"""Above every stored attempt's, so that none is ever taken for one."""


class Follower(Protocol):
    """Who started the process."""

    def granted(self, serial: int, folder: str) -> None:
        """Its streams begin; its output is to lie in ``folder``."""

    def said(self, kind: int, body: dict[str, Any]) -> None:
        """It started, was stopped, or was continued."""

    def ended(self, outcome: Outcome, lengths: tuple[int, int]) -> None:
        """It ended."""


@dataclass(frozen=True, slots=True)
class _Run:
    runner: str
    follower: Follower
    name: str
    folder: str


class BesideRuns:
    """The processes beside jobs, by the serial that their frames carry."""

    def __init__(self, execution: Execution) -> None:
        self.execution = execution
        self._runs: dict[int, _Run] = {}

    def start(self, job: LiveJob, body: dict[str, Any], follower: Follower) -> int:
        """Start a process in a running job's directory, environment and limits.

        Raises ``errors.Conflict`` when the job does not run, ``errors.BadRequest`` for bad input.
        """
        argv = body["argv"]
        if not argv or not all(type(word) is bytes for word in argv):
            raise errors.BadRequest("there is no command to run; give one: updraft exec ID COMMAND")
        attempt = job.attempt
        runner = self.execution.live.runners.get(attempt.runner) if attempt is not None else None
        if attempt is None or attempt.started_ns is None:
            raise errors.Conflict(f"job {job.id} has not started; wait for it to run")
        if runner is None or runner.control is None or runner.data is None:
            raise errors.Unavailable(f"the runner of job {job.id} is away; try again")
        serial = _FIRST_SERIAL + secrets.randbits(56)
        folder = str(self.execution.live.folder_of(job.id, attempt.number) / f"exec-{serial:x}")
        self._runs[serial] = _Run(runner.name, follower, name_of(argv), folder)
        if runner.ships:
            self.execution.intake.begin(serial, folder, lambda: None)
            self.execution.intake.granted(serial, runner.data)
        follower.granted(serial, folder)
        self.execution.relay.granted(serial, runner.data, ships=runner.ships)
        window = frames.OUTPUT_WINDOW_BYTES
        spec = {
            "job": job.id,
            "beside": attempt.serial,
            "folder": os.fsencode(folder),
            "argv": argv,
            "set_environment": body["set_environment"],
            "stdin": body["stdin"],
            "closed_fds": [],
            "one_output": False,
            "tty": body["tty"],
            "attached": True,
            "limits": [window, window],
            "grace_ms": job.grace_ms,
            "deadline_ms": None,
            "quota_bytes": self.execution.quota_bytes,
        }
        runner.control.send_message(frames.SPAWN, spec, serial << 2)
        return serial

    def is_on(self, serial: int, runner: LiveRunner) -> bool:
        """Whether this process is one of ours, and runs there."""
        run = self._runs.get(serial)
        if run is None or run.runner != runner.name:
            return False
        return self.execution.live.runners.get(runner.name) is runner

    def handle(self, serial: int, kind: int, body: dict[str, Any]) -> bool:
        """Take a report about ``serial``.  Returns whether it is one of ours."""
        run = self._runs.get(serial)
        if run is None:
            return serial >= _FIRST_SERIAL
        if kind != frames.EXITED:
            run.follower.said(kind, body)
            return True
        lengths = (body.get("stdout", 0), body.get("stderr", 0))
        if self.execution.intake.holds(serial):
            self.execution.intake.when_complete(
                serial, lengths, lambda: self._end(serial, run, body, lengths)
            )
        else:
            self._end(serial, run, body, lengths)
        return True

    def _end(self, serial: int, run: _Run, body: dict[str, Any], lengths: tuple[int, int]) -> None:
        self._runs.pop(serial, None)
        self.execution.intake.end(serial)
        self._send(run, frames.FORGET, {"attempts": [serial]}, 0)
        run.follower.ended(outcome_of(body, run.name), lengths)
        self.execution.relay.ended(serial)

    def runner_joined(
        self, runner: LiveRunner, reports: list[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """Take up what a reconnected runner still has of ours; return the reports of the rest."""
        rest = []
        for report in reports:
            serial = report["attempt"]
            if not self.is_on(serial, runner):
                rest.append(report)
                continue
            if runner.data is not None:
                if runner.ships:
                    self.execution.intake.runner_joined(serial, runner.data)
                self.execution.relay.runner_joined([serial], runner.data, ships=runner.ships)
            if report.get("end") is not None:
                self.handle(serial, frames.EXITED, report["end"])
        there = {report["attempt"] for report in reports}
        self._lose(runner.name, "its runner does not know it any more", but=there)
        return rest

    def runner_lost(self, runner: str, why: str) -> None:
        """A runner's tasks are given up, and what was beside them."""
        self._lose(runner, why)

    def _lose(self, runner: str, why: str, but: Container[int] = ()) -> None:
        """End what was on a runner, but for these, as far as it can be told here."""
        for serial, run in list(self._runs.items()):
            if run.runner == runner and serial not in but:
                stdout, stderr = (SegmentReader(run.folder, name) for name in ("stdout", "stderr"))
                self._end(serial, run, {"lost": why}, (stdout.length(), stderr.length()))

    def forward(self, serial: int, kind: int, body: dict[str, Any]) -> None:
        """Send a control frame to the process's runner."""
        run = self._runs.get(serial)
        if run is not None:
            self._send(run, kind, body, serial << 2)

    def _send(self, run: _Run, kind: int, body: dict[str, Any], channel: int) -> None:
        runner = self.execution.live.runners.get(run.runner)
        if runner is not None and runner.control is not None:
            runner.control.send_message(kind, body, channel)

    def abandon(self, serial: int) -> None:
        """Its client is gone: end it."""
        self.forward(serial, frames.KILL, {"why": "cancel", "grace_ms": 1000})
