"""All live jobs, by every name that they are looked up by, and what of the pools they hold."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from updraft.model.dependencies import why_waiting as why_waiting_for
from updraft.model.pool import Pool
from updraft.model.states import AttemptState, State, Wanted
from updraft.scheduling.capacity import NOTHING, Capacity, Node
from updraft.scheduling.queue import PoolQueue
from updraft.scheduling.reasons import none_takes, serves_others, why_waiting
from updraft.server.services.dependencies import holds_back
from updraft.server.services.families import Families
from updraft.server.services.holdings import Holdings
from updraft.server.services.live import LiveAttempt, LiveJob, LiveRunner
from updraft.server.services.live_array import LiveCrew, LiveTask
from updraft.server.services.stored import StoredOutput
from updraft.wire import frames

_MOST_KEPT_SIGNALS = 64
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class LiveJobs:
    """The jobs that have not ended, the runners, and the queue of each pool.

    Only memory: whoever changes something here has stored it first.
    """

    def __init__(self, logs_folder: str, quota_bytes: int) -> None:
        self.jobs: dict[int, LiveJob] = {}
        self.by_attempt: dict[int, LiveJob] = {}
        self.tasks: dict[int, LiveTask] = {}
        """Arrays' tasks that have a grant, by their attempts."""
        self.last_attempt = 0
        """The newest attempt's serial, or crew's."""
        self.runners: dict[str, LiveRunner] = {}
        self._of_pool: dict[str, dict[str, LiveRunner]] = {}
        self.pools: dict[str, Pool] = {}
        self.holdings = Holdings()
        self.stored = StoredOutput(quota_bytes)
        self._by_id: dict[str, LiveJob] = {}
        self.families = Families(self._by_id, self.runners)
        self.when_released: Callable[[int], None] = lambda _: None
        """Called when an attempt is the recognised one no more, or a crew is none: its serial."""
        self._queues: dict[str, PoolQueue] = {}
        self._ends: dict[str, set[LiveJob]] = {}  # who reads or writes a pipe
        self._logs = Path(logs_folder)
        self._on_runner: dict[str, dict[int, LiveJob]] = {}
        self._crews_on: dict[str, dict[int, LiveCrew]] = {}
        self._some_end = asyncio.Event()
        self._some_runner = asyncio.Event()

    def __len__(self) -> int:
        return len(self.jobs)

    # -- looking

    def counts(self) -> dict[str, int]:
        """Return how many live jobs run and wait."""
        running = sum(1 for job in self.jobs.values() if job.state is not State.IN_QUEUE)
        return {State.RUNNING: running, State.IN_QUEUE: len(self.jobs) - running}

    def waiting(self) -> dict[str, int]:
        """Return how many jobs wait in each pool, without looking at them."""
        return {pool: len(queue) for pool, queue in self._queues.items()}

    def find(self, job_id: str) -> LiveJob | None:
        """Return the live job with this id."""
        return self._by_id.get(job_id)

    def find_serial(self, serial: int) -> LiveJob | None:
        """Return the live job with this serial."""
        return self.jobs.get(serial)

    def queue(self, pool: str) -> PoolQueue:
        """Return a pool's queue."""
        return self._queues.setdefault(pool, PoolQueue())

    def runners_of(self, pool: str) -> Iterator[LiveRunner]:
        """Yield a pool's runners, there or away."""
        return iter(self._of_pool.get(pool, {}).values())

    def nodes(self, pool: str) -> Iterator[Node]:
        """Yield what a pool's runners offer to new tasks now; only as many as are looked at."""
        for each in self.runners_of(pool):
            if (node := each.node) is not None:
                yield node

    def attempts_on(self, runner: str) -> list[LiveJob]:
        """Return the jobs whose attempt is on a runner."""
        return list(self._on_runner.get(runner, {}).values())

    def count_on(self, runner: str) -> int:
        """Return how many attempts are on a runner, without looking at them."""
        tasks = sum(len(crew.tasks) for crew in self._crews_on.get(runner, {}).values())
        return len(self._on_runner.get(runner, ())) + tasks

    def crews_on(self, runner: str) -> list[LiveCrew]:
        """Return the crews on a runner."""
        return list(self._crews_on.get(runner, {}).values())

    def free_beside(self, runner: str, total: Capacity) -> Capacity:
        """Return what is free on a runner that has ``total`` and the work that it has."""
        for crew in self.crews_on(runner):
            for _ in range(crew.width):
                total = total.without(crew.slot, crew.gpus)
        for job in self.attempts_on(runner):
            if job.attempt is not None:
                total = total.without(job.attempt.holds, job.attempt.own_gpus)
        return total

    def folder_of(self, job_id: str, attempt_number: int, index: int = 0) -> Path:
        """Return where the output of a task's attempt is stored."""
        return self._logs / job_id / f"{index}.{attempt_number}"

    def runner_of(self, job: LiveJob) -> LiveRunner | None:
        """Return the connected runner of a job's attempt."""
        if job.attempt is None:
            return None
        runner = self.runners.get(job.attempt.runner)
        return runner if runner is not None and runner.control is not None else None

    def reason(self, job: LiveJob) -> str:
        """Return why a job waits, computed now."""
        if unmet := holds_back(job):
            return why_waiting_for(unmet)
        if job.not_before_ns is not None:
            at = _EPOCH + timedelta(microseconds=job.not_before_ns // 1000)
            return f"starts {at:%Y-%m-%d %H:%M:%S} UTC at the earliest"
        if job.attempt is not None:
            return "its runner is starting it" if self.runner_of(job) else "its runner is away"
        runners = list(self.runners_of(job.pool))
        if not runners:
            return f"pool {job.pool} has no runner yet"
        mine = [each for each in runners if each.known.serves in (None, job.owner)]
        if not mine:
            return serves_others(job.pool, {each.name: each.known.serves or "" for each in runners})
        nodes = [node for each in mine if (node := each.node) is not None]
        if not nodes:
            return self._why_none_takes(job.pool, mine)
        limited = None if job.beside else self.holdings.why_waiting(job.party, job.need)
        if limited is not None:
            return limited
        ahead = self.queue(job.pool).ahead_of(job.place)
        return why_waiting(job.need, ahead, [node.free for node in nodes], job.pool)

    def array_reason(self, job: LiveJob) -> str | None:
        """Return why those tasks of an array wait that do, None when none does."""
        array = job.array
        if array is None or not array.queued:
            return None
        if array.max_parallel is not None and array.slots >= array.max_parallel:
            return (
                f"{len(array.queued)} tasks wait: --max-parallel {array.max_parallel} are running"
            )
        return f"{len(array.queued)} tasks wait: {self.reason(job)}"

    @staticmethod
    def _why_none_takes(pool: str, runners: list[LiveRunner]) -> str:
        now = time.monotonic()
        drained = [each.name for each in runners if each.is_there and each.known.draining]
        away = {each.name: now - each.seen for each in runners if each.name not in drained}
        return none_takes(pool, drained, away)

    async def wait_for_end(self) -> None:
        """Wait until some live job ends."""
        self._some_end.clear()
        await self._some_end.wait()

    async def wait_for_runner(self) -> None:
        """Wait until there has been a runner."""
        await self._some_runner.wait()

    # -- changing

    def add_runner(self, runner: LiveRunner) -> None:
        """A runner is known, or another connection of one that was."""
        self.runners[runner.name] = runner
        self._of_pool.setdefault(runner.pool, {})[runner.name] = runner
        self.families.look_again()
        self._some_runner.set()

    def remove_runner(self, runner: LiveRunner) -> None:
        """A runner is one no more."""
        self.runners.pop(runner.name, None)
        self._of_pool.get(runner.pool, {}).pop(runner.name, None)

    def add(self, job: LiveJob) -> None:
        """A new job waits in its pool's queue."""
        self.jobs[job.serial] = job
        self._by_id[job.id] = job
        for pipe in filter(None, job.pipes):
            self._ends.setdefault(pipe, set()).add(job)
        self.families.added(job)
        if any(stage.attempt is not None for stage in self._stages_beside(job)):
            _start_beside(job)
        self.wait(job)

    def new_serial(self) -> int:
        """Return the serial of a new attempt or crew."""
        self.last_attempt += 1
        return self.last_attempt

    def wait(self, job: LiveJob) -> None:
        """A job waits (again), or still has tasks that do."""
        if job.ending or job.serial not in self.jobs:
            return
        if job.not_before_ns is not None or job.waits_for:
            return  # see ``timing`` and ``dependencies``
        if job.array is not None:
            self.queue(job.pool).discard(job.place)
            if not job.array.wants or job.wanted is not Wanted.RUN:
                return
        self.queue(job.pool).push(job.place)
        self.families.waits(job)

    def add_crew(self, crew: LiveCrew) -> None:
        """An array has a crew on another runner."""
        self._crews_on.setdefault(crew.runner, {})[crew.serial] = crew

    def hold_task(self, job: LiveJob, row: Mapping[Any, Any]) -> None:
        """A task of an array had its grant from an earlier server, as its stored row says.

        How many slots the crew has is known once its runner is here.
        """
        array = job.array
        assert array is not None  # noqa: S101 - who calls has looked
        crew = array.crews.get(row["crew"])
        if crew is None:
            gpus = tuple(json.loads(row["gpu_ids"]))
            crew = LiveCrew(row["crew"], job, row["runner"], job.need, gpus)
            array.crews[crew.serial] = crew
            self.add_crew(crew)
        task = LiveTask(
            serial=row["serial"],
            index=row["task_index"],
            number=row["number"],
            crew=crew,
            granted_ns=row["granted_ns"],
            tried=array.tries.get(row["task_index"], (0, 0))[1],
            started_ns=row["started_ns"],
            pid=row["pid"],
            stored=True,
            start_stored=row["state"] != AttemptState.GRANTED,
            cancelled=row["state"] == AttemptState.STOPPING,
        )
        array.total += 1
        array.tasks[task.serial] = crew.tasks[task.serial] = self.tasks[task.serial] = task
        crew.width += 1
        self.holdings.take(job.party, job.pool, crew.slot)

    def give_back_slots(self, crew: LiveCrew, count: int) -> None:
        """A crew needs so many of its slots no more."""
        job = crew.job
        for _ in range(count):
            crew.width -= 1
            self.holdings.give_back(job.party, job.pool, crew.slot)
            runner = self.runners.get(crew.runner)
            if runner is not None:
                runner.free = runner.free.give_back(crew.slot, crew.gpus)

    def drop_crew(self, crew: LiveCrew) -> None:
        """A crew has nothing left to do."""
        self.give_back_slots(crew, crew.width)
        held = self._crews_on[crew.runner]
        held.pop(crew.serial, None)
        if not held:
            del self._crews_on[crew.runner]
        self.when_released(crew.serial)
        for borrower in self.families.released(crew):
            self._hold_for_itself(borrower)

    def hold(self, job: LiveJob, attempt: LiveAttempt) -> None:
        """An attempt is granted: the job waits no more."""
        job.attempt = attempt
        job.attempts = max(job.attempts, attempt.number)
        self.by_attempt[attempt.serial] = job
        self._on_runner.setdefault(attempt.runner, {})[attempt.serial] = job
        self.holdings.take(job.party, job.pool, attempt.holds)
        self.queue(job.pool).discard(job.place)
        self.families.held(job, attempt)
        for stage in self._stages_beside(job):
            if stage.waiting:
                self.queue(stage.pool).discard(stage.place)
                if not stage.beside:
                    _start_beside(stage)
                self.wait(stage)

    def _stages_beside(self, job: LiveJob) -> list[LiveJob]:
        """Return the jobs before and behind this one in a pipeline (``urun a | urun b``).

        The stages of a pipeline wait for each other, so they must not wait for each other's CPUs:
        once one of them has its grant, the others start beside it.
        """
        reads, writes = job.pipes
        before = [other for other in self._ends.get(reads, ()) if other.pipes[1] == reads]
        behind = [other for other in self._ends.get(writes, ()) if other.pipes[0] == writes]
        return [other for other in before + behind if other is not job]

    def release(self, job: LiveJob, attempt: LiveAttempt) -> None:
        """An attempt is over: what it held is free."""
        job.attempt = None
        if self.by_attempt.pop(attempt.serial, None) is not None:
            self.holdings.give_back(job.party, job.pool, attempt.holds)
            held = self._on_runner[attempt.runner]
            del held[attempt.serial]
            if not held:
                del self._on_runner[attempt.runner]
            self.when_released(attempt.serial)
        runner = self.runners.get(attempt.runner)
        if runner is not None:
            runner.free = runner.free.give_back(attempt.holds, attempt.own_gpus)
        for borrower in self.families.released(attempt, job.parent):
            self._hold_for_itself(borrower)

    def left_alone(self, job: LiveJob) -> None:
        """A job's client left it on purpose: nobody waits for it."""
        if self.families.left(job):
            self._hold_for_itself(job)

    def _hold_for_itself(self, job: LiveJob) -> None:
        """What a job has borrowed it is to have from its runner, even where that has too little."""
        attempt = job.attempt
        if attempt is None or attempt.lender is None:
            return
        self.holdings.give_back(job.party, job.pool, attempt.holds)
        attempt.lender, attempt.holds, attempt.borrows = None, attempt.borrows, NOTHING
        self.holdings.take(job.party, job.pool, attempt.holds)
        runner = self.runners.get(attempt.runner)
        if runner is not None:
            runner.free = runner.free.without(attempt.holds, attempt.gpus)

    def drop(self, job: LiveJob) -> None:
        """A job has ended, or could not be stored."""
        self.jobs.pop(job.serial, None)
        self._by_id.pop(job.id, None)
        self.families.dropped(job)
        self.queue(job.pool).discard(job.place)
        for pipe in filter(None, job.pipes):
            self._ends[pipe].discard(job)
            if not self._ends[pipe]:
                del self._ends[pipe]
        self._some_end.set()
        job.client = None
        for timer in (job.client_gone, job.timer):
            if timer is not None:
                timer.cancel()
        if job.attempt is not None:
            self.release(job, job.attempt)
        if job.array is not None:
            for task in job.array.tasks.values():
                self.tasks.pop(task.serial, None)
            for crew in job.array.crews.values():
                self.drop_crew(crew)

    # -- to a job's runner

    def forward(self, job: LiveJob, kind: int, body: dict[str, Any]) -> None:
        """Send a control frame about a job's attempt to its runner, if that is there."""
        runner = self.runner_of(job)
        if runner is not None and runner.control is not None and job.attempt is not None:
            runner.control.send_message(kind, body, job.attempt.serial << 2)

    def signal(self, job: LiveJob, number: int) -> None:
        """Send a signal to the command's process group, once there is one."""
        attempt, runner = job.attempt, self.runner_of(job)
        if attempt is None:
            return
        if len(attempt.signals) < _MOST_KEPT_SIGNALS:
            attempt.signals.append(number)
        if runner is not None and attempt.spawned:
            self.send_signals(runner, attempt)

    def send_signals(self, runner: LiveRunner, attempt: LiveAttempt) -> None:
        """Send what waits for an attempt that the runner knows from now on."""
        attempt.spawned = True
        for number in attempt.signals:
            if runner.control is not None:
                channel = attempt.serial << 2
                runner.control.send_message(frames.SIGNAL, {"signal": number}, channel)
        attempt.signals.clear()


def _start_beside(stage: LiveJob) -> None:
    """Let a stage of a pipeline run on the CPUs of another one."""
    stage.unpaid_cpus_milli = stage.need.cpus_milli
    stage.need = replace(stage.need, cpus_milli=0)
    stage.beside = True
