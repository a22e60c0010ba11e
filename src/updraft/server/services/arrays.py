"""Arrays: slots are given to their crews, tasks are fed into these, and their ends are stored.

All that is written of one array is written by its *pump*, one group after another: what has started
and ended since the last write, and the attempts that go out next.  A runner hears of attempts once
they are on the disk.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection

from updraft import errors
from updraft.model.ending import outcome_of, reason_to_retry
from updraft.model.job import Outcome, backoff_of, name_of
from updraft.model.ranges import Ranges
from updraft.model.states import AttemptState, State, Wanted
from updraft.scheduling.queue import Grant
from updraft.server.services.core import Core
from updraft.server.services.endings import Endings
from updraft.server.services.live import LiveJob, LiveRunner
from updraft.server.services.live_array import LiveArray, LiveCrew, LiveTask, Retried
from updraft.server.services.rows import ended_attempt_values, ended_values, event_row
from updraft.server.services.specs import spec_of
from updraft.store import jobs as queries
from updraft.wire import frames
from updraft.wire.packing import unpack_dict

_NAMED_BYTES = 200
"""How much of a list of indices is told."""

_MOST_ENDED_AT_A_TIME = 1000
"""Of tasks that cannot run any more: other writes are not to wait for a million."""

_RECALL_SECONDS = 1.0
"""How long a slot is kept for a task that is taken back from another crew."""

_CANCELLED_UNSTARTED = "cancelled before it started"
_UNSTARTED = {"unstarted": True, "stdout": 0, "stderr": 0}
_NO_ENVIRONMENT = {
    "refused": "start",
    "errno": 0,
    "message": "its stored environment is lost",
    "stdout": 0,
    "stderr": 0,
}


@dataclass(slots=True)
class _Turn:
    """One write about an array, and what follows from it."""

    starts: list[dict[str, Any]] = field(default_factory=list)
    ends: list[dict[str, Any]] = field(default_factory=list)
    recalled: list[dict[str, Any]] = field(default_factory=list)
    grants: list[dict[str, Any]] = field(default_factory=list)
    said: list[dict[str, Any]] = field(default_factory=list)
    job: dict[str, Any] = field(default_factory=dict)
    feeds: dict[LiveCrew, list[LiveTask]] = field(default_factory=dict)
    over: list[LiveTask] = field(default_factory=list)
    forgotten: dict[str, list[int]] = field(default_factory=dict)
    """Attempts and crews that runners need not know of any more, by runner."""
    asked: list[asyncio.Future[None]] = field(default_factory=list)
    """Who waits for what was asked to be stored."""
    cancelled: list[dict[str, Any]] = field(default_factory=list)
    requeued: list[int] = field(default_factory=list)
    """Ended attempts whose tasks are queued anew since somebody asked for it."""
    stored_bytes: list[int] = field(default_factory=list)
    settled: list[tuple[int, bool]] = field(default_factory=list)
    """Indices of tasks that came to their end, and whether they are ok."""
    outcome: Outcome | None = None
    """How the job ended, if it did."""


class Arrays:
    """Carries arrays from their first slot to their end."""

    def __init__(
        self,
        core: Core,
        endings: Endings,
        schedule: Callable[[], None],
        quota_bytes: int,
    ) -> None:
        self._core = core
        self._live = core.live
        self._intake = core.intake
        self._endings = endings
        self._schedule = schedule
        self._quota_bytes = quota_bytes
        self._specs: dict[int, dict[str, Any]] = {}

    # -- slots

    def granted(self, job: LiveJob, grant: Grant) -> None:
        """A slot on a runner is the array's from now on."""
        array = _array_of(job)
        crew = None if grant.gpus else array.crew_on(grant.node)
        if crew is None:
            crew = LiveCrew(self._live.new_serial(), job, grant.node, grant.need, grant.gpus)
            array.crews[crew.serial] = crew
            self._live.add_crew(crew)
        crew.width += 1
        runner = self._live.runners[grant.node]
        runner.free = runner.free.without(grant.need, grant.gpus)
        self._live.holdings.take(job.party, job.pool, grant.need)
        self.kick(job)

    def kick(self, job: LiveJob) -> None:
        """Something about the array has changed."""
        array = _array_of(job)
        if not array.pumping and not job.ending:
            array.pumping = True
            self._core.background.spawn(self._pump(job), f"array {job.id}")

    def _may_feed(self, job: LiveJob, crew: LiveCrew) -> bool:
        """Whether a crew's slots stay the array's when their tasks end."""
        runner = self._live.runners.get(crew.runner)
        if runner is None or runner.node is None or self._core.background.closing:
            return False
        array = _array_of(job)
        if array.max_parallel is not None and array.slots > array.max_parallel:
            return False
        return self._live.queue(job.pool).ahead_of(job.place) == 0

    # -- what runners say

    def started(self, crew_serial: int, runner: LiveRunner, starts: list[list[int]]) -> None:
        """Tasks of a crew run: [attempt, pid, at]."""
        for serial, pid, at_ns in starts:
            task = self._task_of(crew_serial, runner, serial)
            if task is not None and task.started_ns is None:
                self._begun(task, pid, at_ns)
                task.crew.job.array.said.append((task, {}))  # type: ignore[union-attr]
                self.kick(task.crew.job)

    def ended(
        self, crew_serial: int, runner: LiveRunner, ends: list[tuple[int, dict[str, Any]]]
    ) -> None:
        """Tasks of a crew have ended; their output is spooled."""
        for serial, end in ends:
            task = self._task_of(crew_serial, runner, serial)
            if task is not None:
                self._take_end(task, end)

    def _task_of(self, crew_serial: int, runner: LiveRunner, serial: int) -> LiveTask | None:
        task = self._live.tasks.get(serial)
        if task is None or task.crew.serial != crew_serial or task.crew.runner != runner.name:
            return None  # ended, superseded or another's: nothing that it says is taken
        return task

    def _take_end(self, task: LiveTask, end: dict[str, Any]) -> None:
        serial, job = task.serial, task.crew.job
        if "started" in end and task.started_ns is None:
            self._begun(task, end.get("pid"), end["started"])
        if self._intake.holds(serial) and "stdout" in end:
            lengths = (end["stdout"], end["stderr"])
            self._intake.when_complete(serial, lengths, lambda: self._note_end(task, end))
        else:
            self._note_end(task, end)
        self.kick(job)

    def _note_end(self, task: LiveTask, end: dict[str, Any]) -> None:
        job = task.crew.job
        if self._live.tasks.get(task.serial) is task and job.array is not None:
            job.array.said.append((task, end))
            self.kick(job)

    def _begun(self, task: LiveTask, pid: int | None, at_ns: int) -> None:
        job = task.crew.job
        task.pid, task.started_ns = pid, task.within(at_ns, time.time_ns())
        if job.started_ns is None:
            job.started_ns = task.started_ns
            job.state = State.RUNNING

    # -- the pump

    async def _pump(self, job: LiveJob) -> None:
        array = _array_of(job)
        try:
            while not job.ending:
                turn = self._prepare(job, array)
                if turn is None:
                    self._tell_widths(array)
                    return
                await self._core.background.write(lambda c, turn=turn: self._store(c, job, turn))  # type: ignore[misc]
                await self._apply(job, array, turn)
        finally:
            array.pumping = False

    def _prepare(self, job: LiveJob, array: LiveArray) -> _Turn | None:
        """Take what is to be written; None: nothing is."""
        turn = _Turn()
        said, array.said = array.said, []
        first = job.state is State.RUNNING and not job.start_stored
        retried: list[tuple[int, str]] = []
        failed = Ranges()
        for task, end in said:
            if not end:
                if not task.start_stored and task.serial in self._live.tasks:
                    turn.starts.append(_start_values(task))
                continue
            if self._live.tasks.pop(task.serial, None) is None:
                continue  # told twice
            turn.over.append(task)
            if end.get("unstarted") and not task.cancelled and job.wanted is Wanted.RUN:
                turn.recalled.append(_recall_values(task))
                array.queue_again(task.index)
                array.tries[task.index] = (task.number, task.tried)
                continue
            self._end_task(job, array, turn, task, end, retried, failed)
        for task in turn.over:
            array.tasks.pop(task.serial, None)
            task.crew.tasks.pop(task.serial, None)
            turn.forgotten.setdefault(task.crew.runner, []).append(task.serial)
        self._withdraw(job, array, turn)
        self._requeue(array, turn)
        self._feed(job, array, turn)
        self._share_out(job, array)
        self._narrow(array, turn)
        if failed:
            turn.said.append(event_row(job, "TASKS", f"not ok: tasks {_shortened(failed)}"))
        if retried:
            indices = _shortened(Ranges(index for index, _ in retried))
            turn.said.append(event_row(job, "TASKS", f"trying again: tasks {indices}"))
        self._take_job(job, array, turn, first=first)
        some = (turn.starts, turn.over, turn.grants, turn.asked, turn.forgotten, turn.outcome)
        return turn if first or turn.cancelled or any(some) else None

    def _end_task(
        self,
        job: LiveJob,
        array: LiveArray,
        turn: _Turn,
        task: LiveTask,
        end: dict[str, Any],
        retried: list[tuple[int, str]],
        failed: Ranges,
    ) -> None:
        now_ns = time.time_ns()
        at_ns = task.within(end.get("at") or now_ns, now_ns)
        if "unstarted" in end:
            outcome = Outcome(State.CANCELLED, None, _CANCELLED_UNSTARTED)
        else:
            outcome = outcome_of(end, job.command_name, job.need.memory_bytes)
        if task.started_ns is not None:
            array.took((at_ns - task.started_ns) / 1e9)
        why = reason_to_retry(end, outcome)
        again = (
            why in job.retry_on
            and job.wanted is Wanted.RUN
            and not task.cancelled
            and task.tried < job.retries
        )
        lengths = (end.get("stdout", 0), end.get("stderr", 0))
        turn.ends.append(
            {
                **ended_attempt_values(outcome, {**end, "at": at_ns}, lengths),
                "b_serial": task.serial,
                "outcome": State.IN_QUEUE if again else outcome.state,
                "pid": task.pid,
                "started_ns": task.started_ns,
            }
        )
        turn.stored_bytes.extend(lengths)
        if again:
            retried.append((task.index, outcome.message))
            self._queue_again(job, array, task)
            return
        array.tries.pop(task.index, None)
        array.ended_with(task.index, outcome.state, outcome.exit_code)
        turn.settled.append((task.index, outcome.ok))
        if not outcome.ok:
            failed.add(task.index)

    def _queue_again(self, job: LiveJob, array: LiveArray, task: LiveTask) -> None:
        array.tries[task.index] = (task.number, task.tried + 1)
        array.queue_again(task.index)
        wait_ms = backoff_of(job.backoff_ms, task.tried + 1)
        if wait_ms:
            array.later.add(task.index)
            loop = asyncio.get_running_loop()
            loop.call_later(wait_ms / 1000, self._due, job, task.index)

    def _due(self, job: LiveJob, index: int) -> None:
        if job.array is not None and not job.ending:
            job.array.later.discard(index)
            self._live.wait(job)
            self._schedule()
            self.kick(job)

    def _withdraw(self, job: LiveJob, array: LiveArray, turn: _Turn) -> None:
        """End tasks that were cancelled while they waited."""
        withdrawn, array.withdrawn = array.withdrawn, []
        turn.asked += [done for _, done in withdrawn]
        ending = [(index, _CANCELLED_UNSTARTED) for index, _ in withdrawn]
        for why, doomed in array.doomed.items():
            ending += [(index, why) for index in doomed.take(_MOST_ENDED_AT_A_TIME)]
        now_ns = time.time_ns()
        for index, why in ending:
            array.withdraw(index)
            turn.settled.append((index, False))
            number = array.tries.pop(index, (0, 0))[0] + 1  # of the attempt that there will not be
            array.ended_with(index, State.CANCELLED, None)
            turn.cancelled.append(
                {
                    "serial": self._live.new_serial(),
                    "job_serial": job.serial,
                    "task_index": index,
                    "number": number,
                    "state": AttemptState.ENDED,
                    "outcome": State.CANCELLED,
                    "runner": "",
                    "gpu_ids": "[]",
                    "granted_ns": now_ns,
                    "ended_ns": now_ns,
                    "message": why,
                }
            )

    @staticmethod
    def _requeue(array: LiveArray, turn: _Turn) -> None:
        """Queue ended tasks anew that are to be retried."""
        for index, retried in array.retrying.items():
            turn.requeued.append(retried.attempt)
            turn.asked.append(retried.stored)
            array.tries[index] = (retried.number, 0)
            array.queue_again(index)
        array.retrying.clear()

    def _feed(self, job: LiveJob, array: LiveArray, turn: _Turn) -> None:
        if job.wanted is not Wanted.RUN:
            return
        now_ns = time.time_ns()
        for crew in array.crews.values():
            lacking = array.lacking(crew)
            if not lacking or not array.queued or not self._may_feed(job, crew):
                continue
            fed: list[LiveTask] = []
            for index in array.take(lacking):
                number, tried = array.tries.get(index, (0, 0))
                serial = self._live.new_serial()
                task = LiveTask(serial, index, number + 1, crew, now_ns, tried)
                fed.append(task)
                array.tasks[task.serial] = crew.tasks[task.serial] = task
                self._live.tasks[task.serial] = task
                turn.grants.append(_grant_values(job, task))
            if fed:
                turn.feeds[crew] = fed
                crew.expects = max(crew.expects - len(fed), 0)

    def _share_out(self, job: LiveJob, array: LiveArray) -> None:
        """Take tasks back that a crew has ahead, for the slots of others that have nothing to do.

        They end as not started, and are fed anew; those that have started meanwhile stay.
        """
        if array.queued or job.wanted is not Wanted.RUN:
            return
        ahead = [
            task
            for crew in array.crews.values()
            for task in list(crew.tasks.values())[crew.width :]
            if task.stored and task.started_ns is None
        ]
        for crew in array.crews.values():
            idle = crew.width - len(crew.tasks) - crew.expects
            for _ in range(min(idle, len(ahead))):
                task = ahead.pop()
                runner = self._live.runners.get(task.crew.runner)
                if runner is None or not runner.is_there:
                    continue
                runner.kill(task.serial, "recall", 0)
                crew.expects += 1
                loop = asyncio.get_running_loop()
                loop.call_later(_RECALL_SECONDS, self._expect_no_more, job, crew)

    def _expect_no_more(self, job: LiveJob, crew: LiveCrew) -> None:
        crew.expects = max(crew.expects - 1, 0)
        if job.array is not None and crew.serial in job.array.crews:
            self.kick(job)

    def _take_job(self, job: LiveJob, array: LiveArray, turn: _Turn, *, first: bool) -> None:
        """Find what the job's own row gets."""
        if turn.grants or turn.over or turn.asked or turn.cancelled:
            turn.job["queued"] = str(array.queued)
            turn.job["ok_tasks"] = array.ok
            turn.job["ended_tasks"] = array.ended
        if first:
            turn.job |= {"state": State.RUNNING, "started_ns": job.started_ns}
            started = event_row(job, State.RUNNING, "started")
            turn.said.insert(0, {**started, "at_ns": job.started_ns})
        cancelled = job.wanted is Wanted.CANCEL and not array.tasks
        if array.over or cancelled:
            turn.outcome = outcome_of_array(array, cancelled=cancelled, expired=job.expired)
            turn.job |= ended_values(turn.outcome, time.time_ns())
            turn.said.append(event_row(job, turn.outcome.state, turn.outcome.message))
            job.ending = True

    @staticmethod
    def _store(connection: Connection, job: LiveJob, turn: _Turn) -> bool:
        queries.move_attempts(connection, turn.starts)
        queries.move_attempts(connection, turn.ends)
        queries.move_attempts(connection, turn.recalled)
        queries.insert_attempts(connection, turn.grants)
        queries.insert_attempts(connection, turn.cancelled)
        queries.tried_again(connection, turn.requeued)
        if turn.job:
            queries.move_job(connection, job.serial, queries.LIVE, turn.job)
        queries.insert_events(connection, turn.said)
        return True

    async def _apply(self, job: LiveJob, array: LiveArray, turn: _Turn) -> None:
        job.start_stored = job.start_stored or "started_ns" in turn.job
        self._live.stored.add(job.party, turn.stored_bytes)
        for task in turn.over:
            self._intake.end(task.serial)
            self._core.relay.ended(task.serial)
        self._core.dependencies.tasks_ended(job.id, turn.settled)
        for done in turn.asked:
            if not done.done():
                done.set_result(None)
        for name, serials in turn.forgotten.items():
            runner = self._live.runners.get(name)
            if runner is not None and runner.control is not None:
                runner.control.send_message(frames.FORGET, {"attempts": serials})
        if turn.outcome is not None:
            self._specs.pop(job.serial, None)
            self._endings.array_ended(job, turn.outcome)
        else:
            for crew, fed in turn.feeds.items():
                for task in fed:
                    task.stored = True
                await self.send(crew, fed)
            self._live.wait(job)
            self._core.changes.changed(job.serial)
        if turn.over or turn.asked or turn.outcome is not None:
            self._schedule()

    def _narrow(self, array: LiveArray, turn: _Turn) -> None:
        """Give slots back that nothing is left for; a crew without any is no more."""
        for crew in list(array.crews.values()):
            spare = crew.width - len(crew.tasks) - crew.expects
            if spare > 0:
                self._live.give_back_slots(crew, spare)
            if not crew.width:
                del array.crews[crew.serial]
                self._live.drop_crew(crew)
                turn.forgotten.setdefault(crew.runner, []).append(crew.serial)

    # -- to runners

    def _tell_widths(self, array: LiveArray) -> None:
        """Let crews that got slots run more of what they have at a time."""
        for crew in array.crews.values():
            runner = self._live.runners.get(crew.runner)
            if crew.width <= crew.told_width or not crew.tasks or runner is None:
                continue
            if runner.control is not None and crew.keeper == runner.keeper:
                crew.told_width = crew.width
                body: dict[str, Any] = {"tasks": [], "width": crew.width}
                runner.control.send_message(frames.TASKS, body, crew.serial << 2)

    async def send(self, crew: LiveCrew, tasks: list[LiveTask]) -> None:
        """Send attempts that are stored to the crew's runner, if that is there."""
        job = crew.job
        for task in tasks:
            if task.cancelled or job.wanted is not Wanted.RUN:
                self._take_end(task, dict(_UNSTARTED))
        tasks = [task for task in tasks if not task.cancelled]
        if not tasks or job.wanted is not Wanted.RUN:
            return
        spec = await self._spec(job)
        if spec is None:
            for task in tasks:
                self._take_end(task, dict(_NO_ENVIRONMENT))
            return
        runner = self._live.runners.get(crew.runner)
        if runner is None or runner.control is None or runner.data is None:
            return  # reconciling with it sends them again
        control, data = runner.control, runner.data
        if crew.keeper != runner.keeper:
            crew.keeper = runner.keeper
            own = self._core.surroundings.of(job, crew.serial, spec, runner)
            body = {
                **spec,
                **own,
                "crew": crew.serial,
                "width": crew.width,
                "gpus": list(crew.gpus),
            }
            control.send_message(frames.CREW, body, crew.serial << 2)
        if runner.ships:
            for task in tasks:
                self._take_in(task, fresh=True)
                self._intake.granted(task.serial, data)
                self._core.relay.granted(task.serial, data, ships=True)
        crew.told_width = crew.width
        listed = [[task.serial, task.index, task.number] for task in tasks]
        control.send_message(frames.TASKS, {"tasks": listed, "width": crew.width}, crew.serial << 2)

    def _take_in(self, task: LiveTask, *, fresh: bool) -> None:
        job = task.crew.job
        if not self._intake.holds(task.serial):
            folder = str(self._live.folder_of(job.id, task.number, task.index))
            self._intake.begin(
                task.serial, folder, lambda: self._core.changes.grew(job.serial), fresh=fresh
            )

    async def _spec(self, job: LiveJob) -> dict[str, Any] | None:
        """Return what all tasks share; None: its environment is lost."""
        if job.serial not in self._specs:
            row = await self._core.background.read(lambda c: queries.command_of(c, job.serial))
            environment = None
            if row.environment is not None and row.key_slot is not None:
                environment = self._core.keys.decrypt(row.key_slot, row.environment)
            if environment is None or job.array is None:
                return None
            command = unpack_dict(row.command)
            job.command_name = name_of(command["argv"])
            spec = spec_of(job, command, environment, self._quota_bytes)
            folder = os.fsencode(self._live.folder_of(job.id, 0).parent)
            self._specs[job.serial] = {**spec, "folder": folder, "count": job.array.count}
        return self._specs[job.serial]

    # -- requests

    def cancel(self, job: LiveJob, why: str = "cancel") -> None:
        """End what runs of an array whose cancellation is stored."""
        array = _array_of(job)
        for crew in array.crews.values():
            runner = self._live.runners.get(crew.runner)
            if runner is not None:
                runner.kill(crew.serial, why, job.grace_ms)
        self.kick(job)

    async def cancel_task(self, job: LiveJob, index: int) -> None:
        """End one task of an array; returns once the wish is stored.

        Raises ``errors.Conflict`` when the task has ended.
        """
        array = _array_of(job)
        if index in array.queued:
            array.withdraw(index)
            done = asyncio.get_running_loop().create_future()
            array.withdrawn.append((index, done))
            self.kick(job)
            await done
            return
        task = next((each for each in array.tasks.values() if each.index == index), None)
        if task is None:
            raise errors.Conflict(f"task {job.id}/{index} has ended")
        if not task.cancelled:
            task.cancelled = True
            stopping = [{"b_serial": task.serial, "state": AttemptState.STOPPING}]
            await self._core.database.write(lambda c: queries.move_attempts(c, stopping))
        runner = self._live.runners.get(task.crew.runner)
        if runner is not None and task.stored:
            runner.kill(task.serial, "cancel", job.grace_ms)

    async def retry_task(self, job: LiveJob, index: int) -> None:
        """Queue a task anew that has ended; returns once that is stored.

        Raises ``errors.Conflict`` when it has not ended.
        """
        array = _array_of(job)
        waits = index in array.queued or any(t.index == index for t in array.tasks.values())
        if waits:
            raise errors.Conflict(f"task {job.id}/{index} has not ended; nothing is to be retried")
        ended, worst = await self._core.database.read(
            lambda c: (
                queries.attempts_of(c, job.serial, index),
                queries.next_not_ok(c, job.serial, index),
            )
        )
        if job.ending or not ended:
            raise errors.Conflict(f"job {job.id} has ended; see: updraft job rerun --failed")
        if index in array.retrying:
            raise errors.Conflict(f"task {job.id}/{index} is being retried")
        last = ended[-1]
        done = asyncio.get_running_loop().create_future()
        array.retrying[index] = Retried(last["serial"], last["number"], done)
        array.take_back(index, State(last["outcome"]), last["exit_code"], worst)
        self.kick(job)
        await done

    # -- runners come and go

    def joined(self, runner: LiveRunner, reports: list[dict[str, Any]]) -> list[int]:
        """A runner has connected, whose crews have these attempts; return which it may forget."""
        forget: list[int] = []
        known: set[int] = set()
        widths: dict[int, int] = {}
        for report in reports:
            serial, end = report["attempt"], report.get("end")
            task = self._task_of(report["crew"], runner, serial)
            if task is None:
                if end is not None:
                    forget.append(serial)
                else:
                    runner.kill(serial, "stale", 0)
                continue
            known.add(serial)
            task.crew.keeper = runner.keeper
            if end is None and not report.get("waiting"):
                widths[task.crew.serial] = widths.get(task.crew.serial, 0) + 1
            if runner.ships and runner.data is not None:
                self._take_in(task, fresh=False)
                self._intake.runner_joined(serial, runner.data)
            if report.get("pid") is not None:
                self.started(task.crew.serial, runner, [[serial, report["pid"], report["at"]]])
            if end is None and (task.cancelled or task.crew.job.wanted is Wanted.CANCEL):
                runner.kill(serial, "cancel", task.crew.job.grace_ms)
        for crew in self._live.crews_on(runner.name):
            width = max(widths.get(crew.serial, 0), 1)
            self._live.give_back_slots(crew, crew.width - width)
            self._reconcile(crew, runner, known)
        for report in reports:
            if report["attempt"] in known and report.get("end") is not None:
                self.ended(report["crew"], runner, [(report["attempt"], report["end"])])
        return forget

    def _reconcile(self, crew: LiveCrew, runner: LiveRunner, known: set[int]) -> None:
        """Send what a runner should have and has not, unless it may have started."""
        elsewhere = runner.known.remote and crew.keeper not in ("", runner.keeper)
        again: list[LiveTask] = []
        for task in crew.tasks.values():
            if task.serial in known or not task.stored:
                continue
            if task.started_ns is None and not elsewhere:
                again.append(task)
            else:
                self._take_end(task, {"lost": "its runner does not know it any more"})
        crew.keeper = ""  # it is told anew what its tasks share
        if again:
            self._core.background.spawn(self.send(crew, again), f"tasks of {crew.job.id} again")

    def lost(self, runner: LiveRunner, why: str) -> None:
        """A runner's lease has run out: what it had is given up, and tried again where asked."""
        for crew in self._live.crews_on(runner.name):
            for task in list(crew.tasks.values()):
                self._take_end(task, {"lost": why})


def outcome_of_array(array: LiveArray, *, cancelled: bool, expired: bool = False) -> Outcome:
    """Return how an array ended, of which nothing runs any more."""
    exit_code = None if array.worst is None else array.worst[1]
    if expired:
        return Outcome(State.EXPIRED, exit_code, f"its deadline was reached; {_counts(array)}")
    if cancelled:
        return Outcome(State.CANCELLED, exit_code, f"cancelled; {_counts(array)}")
    for state in (State.FAILURE, State.EXPIRED, State.CANCELLED):
        if array.not_ok[state]:
            return Outcome(state, exit_code, _counts(array))
    return Outcome(State.SUCCESS, 0 if array.worst is None else exit_code, _counts(array))


def _counts(array: LiveArray) -> str:
    rest = array.total - array.ok
    return (
        f"all {array.total} tasks are ok" if not rest else f"{array.ok} of {array.total} tasks ok"
    )


def _array_of(job: LiveJob) -> LiveArray:
    assert job.array is not None  # noqa: S101 - who calls has looked
    return job.array


def _start_values(task: LiveTask) -> dict[str, Any]:
    task.start_stored = True
    return {
        "b_serial": task.serial,
        "state": AttemptState.RUNNING,
        "pid": task.pid,
        "started_ns": task.started_ns,
    }


def _recall_values(task: LiveTask) -> dict[str, Any]:
    return {
        "b_serial": task.serial,
        "state": AttemptState.RECALLED,
        "outcome": State.IN_QUEUE,
        "ended_ns": time.time_ns(),
        "message": "taken back before it started",
    }


def _grant_values(job: LiveJob, task: LiveTask) -> dict[str, Any]:
    return {
        "serial": task.serial,
        "job_serial": job.serial,
        "task_index": task.index,
        "number": task.number,
        "state": AttemptState.GRANTED,
        "crew": task.crew.serial,
        "runner": task.crew.runner,
        "gpu_ids": "[]",
        "granted_ns": task.granted_ns,
        "message": "",
    }


def _shortened(indices: Ranges) -> str:
    text = str(indices)
    return text if len(text) <= _NAMED_BYTES else text[:_NAMED_BYTES].rsplit(",", 1)[0] + " …"
