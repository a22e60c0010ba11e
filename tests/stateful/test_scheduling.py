"""Whatever is submitted, cancelled, lost and restarted in whatever order, the promises hold.

P1 (nothing acknowledged is lost), P2 (an attempt starts once, with a stored grant; one is
recognised), P5 (nothing leaves a terminal state; who waits has a reason) are looked at after every
step, and at the end every job must come to its end with nothing held.  No task starts before what
it is to run after has ended as it should; who never can run has ended.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.stateful.world import OWNERS, World, scratch
from updraft.model.dependencies import PAIRED, Edge, On
from updraft.model.job import ONE_TASK, Kind, Policy, RetryOn, Tasks

pytestmark = pytest.mark.timeout(400)

CPUS = st.sampled_from([0, 500, 1000, 2000])
ANY = st.integers(0, 1 << 16)
TASK = st.none() | st.integers(0, 39)


class Cluster(RuleBasedStateMachine):
    """People submit and cancel; machines come, go, and are lost; the server is killed."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = scratch(Path.cwd())
        self.world = World(self.folder)

    @initialize(cpus=st.integers(1, 4))
    def first_runner(self, cpus: int) -> None:
        self.world.add_runner(cpus)

    @rule(
        owner=st.sampled_from(OWNERS),
        cpus=CPUS,
        retries=st.integers(0, 2),
        priority=st.integers(-1, 1),
    )
    def submit(self, owner: str, cpus: int, retries: int, priority: int) -> None:
        self.world.submit(owner, ONE_TASK, Policy(retries=retries, priority=priority), cpus)

    @rule(
        owner=st.sampled_from(OWNERS),
        count=st.integers(1, 40),
        most=st.none() | st.integers(1, 3),
        retries=st.integers(0, 2),
        backoff_ms=st.sampled_from([0, 0, 1000]),
        acknowledged=st.booleans(),
    )
    def submit_array(
        self,
        owner: str,
        count: int,
        most: int | None,
        retries: int,
        backoff_ms: int,
        acknowledged: bool,
    ) -> None:
        tasks = Tasks(Kind.ARRAY, count, most)
        on = frozenset({RetryOn.LOST, RetryOn.EXIT})
        policy = Policy(retries=retries, retry_on=on, backoff_ms=backoff_ms)
        self.world.submit(owner, tasks, policy, acknowledged=acknowledged)

    @precondition(lambda self: self.world.acknowledged)
    @rule(
        owner=st.sampled_from(OWNERS),
        upstreams=st.lists(st.tuples(ANY, st.sampled_from(On), TASK), min_size=1, max_size=3),
        count=st.none() | st.integers(1, 40),
        retries=st.integers(0, 1),
        acknowledged=st.booleans(),
    )
    def submit_after(
        self,
        owner: str,
        upstreams: list[tuple[int, On, int | None]],
        count: int | None,
        retries: int,
        acknowledged: bool,
    ) -> None:
        jobs = list(self.world.acknowledged)
        after = []
        for which, on, index in upstreams:
            job = jobs[which % len(jobs)]
            task = None if index is None else index % self.world.acknowledged[job].count
            after.append(Edge(job, on, task))
        tasks = ONE_TASK if count is None else Tasks(Kind.ARRAY, count)
        policy = Policy(retries=retries, retry_on=frozenset({RetryOn.LOST, RetryOn.EXIT}))
        self.world.submit(owner, tasks, policy, acknowledged=acknowledged, after=tuple(after))

    @precondition(lambda self: self.arrays())
    @rule(
        owner=st.sampled_from(OWNERS),
        upstream=ANY,
        on=st.sampled_from(On),
        beside=st.booleans(),
        retries=st.integers(0, 1),
    )
    def submit_paired(self, owner: str, upstream: int, on: On, beside: bool, retries: int) -> None:
        """Task by task after another array, and perhaps after others with as many tasks."""
        arrays = self.arrays()
        first = arrays[upstream % len(arrays)]
        count = self.world.acknowledged[first].count
        after = [Edge(first, on, PAIRED)]
        if beside:
            alike = [job for job in arrays if self.world.acknowledged[job].count == count]
            after.append(Edge(alike[upstream % len(alike)], On.ANY, PAIRED))
        policy = Policy(retries=retries, retry_on=frozenset({RetryOn.LOST, RetryOn.EXIT}))
        self.world.submit(owner, Tasks(Kind.ARRAY, count), policy, after=tuple(after))

    def arrays(self) -> list[str]:
        jobs = self.world.acknowledged.items()
        return [job for job, tasks in jobs if tasks.kind is Kind.ARRAY]

    @rule(count=st.integers(1, 6), status=st.sampled_from([0, 0, 0, 256, 9]), which=ANY)
    def commands_end(self, count: int, status: int, which: int) -> None:
        running = [(r, p) for r in self.world.runners.values() for p in r.running()]
        for at in range(min(count, len(running))):
            runner, process = running[(which + at) % len(running)]
            if process.runs:
                self.world.end(runner, process, status)

    @precondition(lambda self: self.world.acknowledged)
    @rule(which=ANY)
    def cancel(self, which: int) -> None:
        jobs = list(self.world.acknowledged)
        self.world.cancel(jobs[which % len(jobs)])

    @precondition(lambda self: self.world.acknowledged)
    @rule(which=ANY, index=st.integers(0, 39), retry=st.booleans())
    def change_a_task(self, which: int, index: int, retry: bool) -> None:
        arrays = [job for job, tasks in self.world.acknowledged.items() if tasks.count > index]
        if arrays:
            change = self.world.retry_task if retry else self.world.cancel_task
            change(arrays[which % len(arrays)], index)

    @precondition(lambda self: len(self.world.runners) < 3)
    @rule(cpus=st.integers(1, 4))
    def runner_joins(self, cpus: int) -> None:
        self.world.add_runner(cpus)

    @precondition(lambda self: self.world.runners)
    @rule(which=ANY, how=st.sampled_from(["cut", "again", "lost", "crash", "crash and back"]))
    def runner_fails(self, which: int, how: str) -> None:
        runners = list(self.world.runners.values())
        runner = runners[which % len(runners)]
        match how:
            case "cut":
                self.world.disconnect(runner)
            case "lost":
                self.world.lose(runner)
            case "crash" | "crash and back":
                self.world.run(_crash(runner))
        if how in ("again", "crash and back"):
            self.world.connect(runner)

    @rule()
    def server_is_killed(self) -> None:
        self.world.restart()

    @rule(seconds=st.sampled_from([1.0, 60.0]))
    def time_goes_on(self, seconds: float) -> None:
        self.world.advance(seconds)

    @rule()
    def all_is_settled(self) -> None:
        self.world.settle()
        self.world.check_quiet()

    @rule()
    def all_is_looked_at(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        try:
            self.world.finish_everything()
        finally:
            self.world.close()
            shutil.rmtree(self.folder)


async def _crash(runner) -> None:  # type: ignore[no-untyped-def]
    runner.crash()


TestCluster = Cluster.TestCase
TestCluster.settings = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
