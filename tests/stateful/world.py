"""Real services on a real database, with simulated machines: what the stateful tests act on."""

from __future__ import annotations

import asyncio
import itertools
import os
import sqlite3
import time
from collections import Counter
from pathlib import Path

from tests.stateful.simulated_runner import Process, SimulatedRunner
from tests.stateful.virtual_clock import VirtualClockLoop
from updraft import errors
from updraft.model import dependencies
from updraft.model.access import Principal
from updraft.model.dependencies import Edge, On
from updraft.model.job import Command, Kind, Policy, Resources, Submission, Tasks
from updraft.model.pool import Pool
from updraft.model.states import TERMINAL, State
from updraft.scheduling.capacity import Capacity
from updraft.server.auth.environment_keys import EnvironmentKeys
from updraft.server.relay.relay import Relay
from updraft.server.services.execution import Execution
from updraft.store import jobs as queries
from updraft.store import schema
from updraft.store.database import Database, sqlite_url

OWNERS = ("ada", "ben")
COMMAND = Command([b"true"], b"/", 0o22, 0, [], [], [], stdin=False, terminal=None)
_DONE = ("ENDED", "LOST", "RECALLED")


class World:
    """A server that may be restarted, its machines, and what was promised to whom."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.loop = VirtualClockLoop()
        self.runners: dict[str, SimulatedRunner] = {}
        self.acknowledged: dict[str, Tasks] = {}
        self.ended: dict[str, tuple[str, int | None]] = {}
        """Terminal states that were seen: nothing may leave them."""
        self.retried: set[tuple[str, int]] = set()
        """Tasks that had ended, and were queued anew since somebody asked for it."""
        self.starts: Counter[int] = Counter()
        self._numbers = itertools.count()
        self._looking = sqlite3.connect(":memory:")
        self.run(self._open())

    def run(self, work: object) -> object:
        return self.loop.run_until_complete(work)  # type: ignore[arg-type]

    # -- the server

    async def _open(self) -> None:
        self.database = Database(sqlite_url(str(self.folder / "updraft.db")))
        await asyncio.to_thread(schema.upgrade, self.database.engine)
        used = await self.database.read(queries.used_key_slots)
        self.keys = EnvironmentKeys(str(self.folder / "keys"), used)
        self.execution = Execution(
            self.database, self.keys, Relay(), str(self.folder / "logs"), default_pool="lab"
        )
        self.execution.live.pools["lab"] = Pool("lab")
        await self.execution.load()
        self._looking = sqlite3.connect(self.folder / "updraft.db")

    def restart(self) -> None:
        """Kill the server with whatever it is doing, and start the next one."""
        self.run(self._restart())

    async def _restart(self) -> None:
        for runner in self.runners.values():
            runner.disconnect()
            runner.execution = None
        for task in asyncio.all_tasks():
            if task is not asyncio.current_task():
                task.cancel()
        await self.database.close()
        self.keys.close()
        self._looking.close()
        await self._open()

    def close(self) -> None:
        self.run(self._close())
        self.loop.close()

    async def _close(self) -> None:
        self.execution.close()
        await self.execution.settle()
        await self.database.close()
        self.keys.close()
        self._looking.close()

    def settle(self) -> None:
        """Wait until the server has nothing to do: all that is known is stored and acted upon."""
        self.run(self._settle())

    async def _settle(self) -> None:
        quiet = 0
        while quiet < 3:
            await asyncio.sleep(0)
            others = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
            if others:
                quiet = 0
                await asyncio.wait(others, return_when=asyncio.FIRST_COMPLETED)
            else:
                quiet += 1

    def advance(self, seconds: float) -> None:
        self.run(self.loop.advance(seconds))

    # -- machines

    def add_runner(self, cpus: int) -> SimulatedRunner:
        name = f"r{len(self.runners)}"
        capacity = Capacity(cpus * 1000, 1 << 40, frozenset())
        runner = SimulatedRunner(name, capacity, self._started, time.time_ns, pool="lab")
        self.runners[name] = runner
        self.connect(runner)
        return runner

    def connect(self, runner: SimulatedRunner) -> None:
        async def join() -> None:
            runner.connect(self.execution)

        self.run(join())

    def disconnect(self, runner: SimulatedRunner) -> None:
        async def leave() -> None:
            runner.disconnect()

        self.run(leave())

    def lose(self, runner: SimulatedRunner) -> None:
        """Its lease runs out; the machine may come back later with all that it has."""

        async def lose() -> None:
            runner.disconnect()
            live = self.execution.live.runners.get(runner.name)
            if live is not None:
                self.execution.runners.lost(live, f"its runner {runner.name} was lost")

        self.run(lose())

    def _started(self, process: Process) -> None:
        """P2: an attempt starts once, with a grant that is on the disk."""
        self.starts[process.serial] += 1
        assert self.starts[process.serial] == 1, f"attempt {process.serial} started twice"
        look = "SELECT state FROM attempts WHERE serial = ?"
        found = self._looking.execute(look, (process.serial,)).fetchone()
        assert found is not None, f"attempt {process.serial} started without a stored grant"
        job, index, _ = process.key
        for edge in self._edges_of(job):
            ok = self._ended(edge, index, ever=True)
            assert ok is not None, f"task {job}/{index} started before {edge} had ended"
            assert ok or edge.on is not On.OK, f"task {job}/{index} started: {edge} is not ok"

    # -- dependencies

    def _edges_of(self, job: str) -> tuple[Edge, ...]:
        look = "SELECT after FROM jobs WHERE id = ?"
        return dependencies.read(self._looking.execute(look, (job,)).fetchone()[0])

    def _ended(self, edge: Edge, index: int, *, ever: bool = False) -> bool | None:
        """Return whether what an edge names has ended so that it is met; None: it has not ended.

        ``ever``: or had, before somebody had it tried again.
        """
        look = "SELECT serial, state, exit_code FROM jobs WHERE id = ?"
        serial, state, code = self._looking.execute(look, (edge.job,)).fetchone()
        if edge.task is None:
            ok = state == "SUCCESS" and code == 0
            return edge.met_by(ok=ok) if State(state) in TERMINAL else None
        task = index if edge.task == "*" else edge.task
        look = (
            "SELECT outcome, exit_code FROM attempts WHERE job_serial = ? AND task_index = ?"
            " AND state = 'ENDED' ORDER BY number"
        )
        ends = self._looking.execute(look, (serial, task)).fetchall()
        if ever and (edge.job, task) in self.retried:
            return any(edge.met_by(ok=code == 0) for _, code in ends)
        ok = bool(ends) and ends[-1] == ("SUCCESS", 0)
        if State(state) in TERMINAL:
            return edge.met_by(ok=ok)
        look = "SELECT outcome FROM attempts WHERE job_serial = ? AND task_index = ?"
        last = self._looking.execute(f"{look} ORDER BY number DESC", (serial, task)).fetchone()
        if last is None or last[0] in (None, "IN_QUEUE"):
            return None
        return edge.met_by(ok=ok)

    def _check_edges(self) -> None:
        """Nothing is under way: who still waits waits for what has not ended."""
        for job in self.execution.live.jobs.values():
            for edge in job.waits_for:
                assert self._ended(edge, 0) is None, f"{job.id} still waits for {edge}"
            if job.waits_for:
                assert job.attempt is None, job.id
            if job.array is None:
                continue
            assert not any(job.array.doomed.values()), f"{job.id} has tasks that never can run"
            for edge, held in job.array.pairs.items():
                for index in held:
                    assert self._ended(edge, index) is None, f"{job.id}/{index} waits for {edge}"

    # -- jobs

    def submit(
        self,
        owner: str,
        tasks: Tasks,
        policy: Policy,
        cpus_milli: int = 1000,
        *,
        acknowledged: bool = True,
        after: tuple[Edge, ...] = (),
    ) -> str | None:
        submission = Submission(
            key=b"key-%08d" % next(self._numbers),
            command=COMMAND,
            attached=False,
            resources=Resources(cpus_milli),
            policy=policy,
            tasks=tasks,
            pool="lab",
            after=after,
        )
        who = Principal(owner, "red")

        async def submit() -> str | None:
            asking = asyncio.ensure_future(
                self.execution.submitting.submit(who, submission, b"A=1")
            )
            if acknowledged:
                return await asking
            await asyncio.sleep(0)
            return None

        try:
            job = self.run(submit())
        except errors.UpdraftError:
            return None
        assert job is None or isinstance(job, str)
        if job is not None:
            self.acknowledged[job] = tasks
        return job

    def cancel(self, job_id: str) -> None:
        job = self.execution.live.find(job_id)
        if job is not None and not job.ending:
            self.run(self.execution.cancel(job))

    def cancel_task(self, job_id: str, index: int) -> None:
        job = self.execution.live.find(job_id)
        if job is None or job.array is None or job.ending:
            return
        try:
            self.run(self.execution.arrays.cancel_task(job, index))
        except errors.Conflict:
            return

    def retry_task(self, job_id: str, index: int) -> None:
        job = self.execution.live.find(job_id)
        if job is None or job.array is None or job.ending:
            return
        self.retried.add((job_id, index))
        try:
            self.run(self.execution.arrays.retry_task(job, index))
        except errors.Conflict:
            return

    # -- what must hold

    def check(self) -> None:
        """Compare what is stored, what the server thinks, and what runs."""
        rows = self._looking.execute("SELECT id, state, exit_code FROM jobs").fetchall()
        by_id = {row[0]: row for row in rows}
        for acknowledged in self.acknowledged:
            assert acknowledged in by_id, f"P1: job {acknowledged} is lost"
        for row in rows:
            state = State(row[1])
            before = self.ended.get(row[0])
            assert before is None or before == (row[1], row[2]), f"P5: {row[0]} left {before}"
            if state in TERMINAL:
                self.ended[row[0]] = (row[1], row[2])
                assert self.execution.live.find(row[0]) is None or self._busy(row[0])
        self._check_attempts()
        for job in self.execution.live.jobs.values():
            self._check_reason(job.id)
        self._check_room()

    def _busy(self, job_id: str) -> bool:
        job = self.execution.live.find(job_id)
        return job is not None and job.ending

    def _check_attempts(self) -> None:
        twice = self._looking.execute(
            "SELECT job_serial, task_index, count(*) FROM attempts"
            " WHERE state NOT IN ('ENDED', 'LOST', 'RECALLED')"
            " GROUP BY job_serial, task_index HAVING count(*) > 1"
        ).fetchall()
        assert twice == [], f"P2: several recognised attempts of (job, task, count): {twice}"
        dead = self._looking.execute(
            "SELECT a.serial FROM attempts a JOIN jobs j ON j.serial = a.job_serial"
            " WHERE j.state IN ('SUCCESS', 'FAILURE', 'EXPIRED', 'CANCELLED')"
            " AND a.state NOT IN ('ENDED', 'LOST', 'RECALLED')"
        ).fetchall()
        assert dead == [], f"ended jobs have live attempts: {dead}"

    def _check_reason(self, job_id: str) -> None:
        job = self.execution.live.find(job_id)
        if job is not None and job.state is State.IN_QUEUE:
            assert self.execution.live.reason(job), f"P5: {job_id} waits without a reason"

    def _check_room(self) -> None:
        live = self.execution.live
        for runner in live.runners.values():
            assert runner.free == live.free_beside(runner.name, runner.total), runner.name
            if runner.name in self.runners and self.runners[runner.name].connected:
                assert runner.free.cpus_milli >= 0, f"{runner.name} holds more than it has"

    def check_quiet(self) -> None:
        """As ``check``, once nothing is under way: memory and store agree to the last task."""
        self.check()
        self._check_edges()
        rows = self._looking.execute(
            "SELECT id, queued, ok_tasks, ended_tasks, serial FROM jobs WHERE kind = 'array'"
        ).fetchall()
        for job_id, queued, ok, ended, serial in rows:
            job = self.execution.live.find(job_id)
            if job is None or job.array is None:
                continue
            array = job.array
            assert str(array.queued) == queued, job_id
            assert (array.ok, array.ended) == (ok, ended), job_id
            assert array.ended + len(array.queued) + len(array.tasks) == array.total, job_id
            stored = self._looking.execute(
                "SELECT serial FROM attempts WHERE job_serial = ?"
                " AND state NOT IN ('ENDED', 'LOST', 'RECALLED')",
                (serial,),
            ).fetchall()
            assert {each for (each,) in stored} == set(array.tasks), job_id
            if array.max_parallel is not None:
                assert array.running() <= array.max_parallel, job_id

    # -- to the end

    def finish_everything(self) -> None:
        """Heal all, let all commands end: every job ends, and all that was held is free."""
        for runner in self.runners.values():
            if not runner.connected or runner.live is None or runner.live.lost:
                self.connect(runner)
        self.add_runner(4)  # whatever was asked for when there was no runner fits on this one
        rounds_without_end = 0
        while self.execution.live.jobs and rounds_without_end < 20:
            self.settle()
            self.check_quiet()
            rounds_without_end += 1
            self.advance(60)
            for runner in self.runners.values():
                for process in runner.running():
                    self.end(runner, process)
                    rounds_without_end = 0
        assert not self.execution.live.jobs, self._stuck()
        for live in self.execution.live.runners.values():
            assert live.free == live.total
        assert self.execution.live.tasks == {}
        self._check_all_ran()

    def end(self, runner: SimulatedRunner, process: Process, status: int = 0) -> None:
        async def end() -> None:
            runner.finish(process, status)

        self.run(end())

    def _stuck(self) -> str:
        live = self.execution.live
        return "; ".join(f"{job.id} {job.state} {live.reason(job)}" for job in live.jobs.values())

    def _check_all_ran(self) -> None:
        """A job that went well had each of its tasks end well, once."""
        rows = self._looking.execute(
            "SELECT id, serial FROM jobs WHERE state = 'SUCCESS' AND exit_code = 0"
        ).fetchall()
        for job_id, serial in rows:
            tasks = self.acknowledged.get(job_id)
            if tasks is None or tasks.kind is not Kind.ARRAY:
                continue
            well = self._looking.execute(
                "SELECT task_index FROM attempts WHERE job_serial = ? AND outcome = 'SUCCESS'",
                (serial,),
            ).fetchall()
            assert sorted(index for (index,) in well) == list(range(tasks.count)), job_id


def scratch(base: Path) -> Path:
    """Return a fresh folder, in memory where that can be had: what is tested is no disk."""
    memory = Path("/dev/shm")
    root = memory if os.access(memory, os.W_OK) else base
    folder = root / f"updraft-stateful-{os.getpid()}-{next(_FOLDERS)}"
    folder.mkdir(mode=0o700)
    return folder


_FOLDERS = itertools.count()
