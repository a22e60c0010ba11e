"""Runners come, go and are lost: what they hold is reconciled with what is stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from updraft.model.states import Wanted
from updraft.server.services.attendance import Attendance
from updraft.server.services.core import Core
from updraft.server.services.endings import Endings
from updraft.server.services.granting import Granting
from updraft.server.services.live import LiveRunner
from updraft.server.services.reports import Reports
from updraft.wire import frames


class Reconciling:
    """The runners that are there, and what becomes of the attempts of those that are not."""

    def __init__(
        self,
        core: Core,
        granting: Granting,
        endings: Endings,
        reports: Reports,
        attendance: Attendance,
    ) -> None:
        self._background = core.background
        self._live = core.live
        self._relay = core.relay
        self._intake = core.intake
        self._granting = granting
        self._endings = endings
        self._reports = reports
        self._attendance = attendance
        self.when_lost: Callable[[str, str], None] = lambda *_: None
        """Called with the name of a runner whose tasks are given up, and why."""

    def joined(self, runner: LiveRunner, reports: list[dict[str, Any]]) -> None:
        """A runner has connected, with all that its keeper holds: reconcile.

        The newer connection fences the older, whoever it is that holds that: what is said there
        from now on is not taken, and what only that one has is given up.
        """
        before = self._live.runners.get(runner.name)
        if before is not None:
            self.hang_up(before)
        runner.free = self._live.free_beside(runner.name, runner.total)
        self._live.add_runner(runner)
        known: set[int] = set()
        of_crews = [report for report in reports if "crew" in report]
        reports = [report for report in reports if "crew" not in report]
        forget = self._granting.arrays.joined(runner, of_crews)
        relayed = [
            each["attempt"]
            for each in of_crews
            if (task := self._live.tasks.get(each["attempt"])) and task.crew.runner == runner.name
        ]
        for report in reports:
            serial = report["attempt"]
            job = self._live.by_attempt.get(serial)
            end = report.get("end")
            if job is None or job.attempt is None or job.attempt.runner != runner.name:
                # Ended, superseded or another's: nothing that it says is taken.
                if end is not None:
                    forget.append(serial)
                else:
                    runner.kill(serial, "stale", 0)
                continue
            known.add(serial)
            relayed.append(serial)
            if runner.ships and runner.data is not None:
                self._granting.begin_intake(job, job.attempt, fresh=False)
                self._intake.runner_joined(serial, runner.data)
            if report.get("pid") is not None:
                self._reports.started(serial, report)
            if end is None:
                self._live.send_signals(runner, job.attempt)
                self._attendance.runner_is_back(job)
                # It may have been changed while the runner, or this server, was away.
                self._live.forward(job, frames.DEADLINE, {"limit_ms": job.time_limit_ms})
                if job.hung_up:  # an agent that was killed may have had the word with it
                    self._attendance.hang_up(job)
                if job.wanted is Wanted.CANCEL:
                    why = "deadline" if job.expired else "cancel"
                    runner.kill(serial, why, job.grace_ms)
        if forget and runner.control is not None:
            runner.control.send_message(frames.FORGET, {"attempts": forget})
        if runner.data is not None:
            self._relay.runner_joined(relayed, runner.data, ships=runner.ships)
        for report in reports:
            if report["attempt"] in known and report.get("end") is not None:
                self._reports.exited(report["attempt"], report["end"])
        for held in self._live.attempts_on(runner.name):
            attempt = held.attempt
            if attempt is None or attempt.serial in known:
                continue
            attempt.spawned = False
            if not attempt.stored:
                continue  # it is sent once it is
            # A keeper that another took the place of may have started it: a copy of the runner's
            # token is on two machines, or this one was set up anew.
            elsewhere = runner.known.remote and attempt.keeper not in ("", runner.keeper)
            if attempt.started_ns is None and not elsewhere:
                # The keeper notes an attempt before it starts it, so this one never started.
                self._background.spawn(
                    self._granting.spawn_stored(held, attempt), f"grant {held.id} again"
                )
            else:
                end = {"lost": "its runner does not know it any more"}
                self._reports.exited(attempt.serial, end)
        self._granting.schedule()

    def is_on(self, serial: int, runner: LiveRunner) -> bool:
        """Whether this attempt is recognised, and that runner's: others' word is not taken."""
        if self._live.runners.get(runner.name) is not runner:
            return False
        task = self._live.tasks.get(serial)
        if task is not None:
            return task.crew.runner == runner.name
        job = self._live.by_attempt.get(serial)
        return job is not None and job.attempt is not None and job.attempt.runner == runner.name

    def left(self, runner: LiveRunner) -> None:
        """The runner's connection is gone; its tasks go on."""
        runner.control = None
        if self._live.runners.get(runner.name) is runner:
            for held in self._live.attempts_on(runner.name):
                if held.attempt is not None:
                    held.attempt.spawned = False
        if runner.data is not None:
            self._intake.runner_left(runner.data)
            self._relay.runner_left(runner.data)
            runner.data = None

    def hang_up(self, runner: LiveRunner) -> None:
        """End a silent runner's connections: if it lives, it dials again."""
        if runner.control is not None:
            runner.control.abort()

    def removed(self, runner: LiveRunner) -> None:
        """A runner is to be one no more; what it had is given up."""
        self.hang_up(runner)
        self._live.remove_runner(runner)
        self.lost(runner, f"its runner {runner.name} was removed")

    def lost(self, runner: LiveRunner, why: str) -> None:
        """A runner's lease has run out: what it had is given up, and tried again where asked."""
        runner.lost = True
        self.when_lost(runner.name, why)
        self._granting.arrays.lost(runner, why)
        for held in self._live.attempts_on(runner.name):
            if held.attempt is not None and not held.ending:
                self._endings.end_attempt(held, held.attempt, {"lost": why})
