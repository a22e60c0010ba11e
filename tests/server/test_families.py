"""Children run in what their parents hold, no more of them at once than that is enough for."""

from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tests.server.test_task_tokens import ADMIN, World, with_world
from updraft.model.job import Resources
from updraft.model.pool import Pool, Runner
from updraft.scheduling.capacity import NOTHING, Capacity
from updraft.scheduling.queue import place
from updraft.server.relay.relay import Relay
from updraft.server.services.execution import Execution
from updraft.server.services.live import Lender, LiveAttempt, LiveJob, LiveRunner
from updraft.server.services.live_jobs import LiveJobs
from updraft.wire import frames

GPUS = frozenset({"gpu-a", "gpu-b"})
NEEDS = st.builds(
    Resources,
    cpus_milli=st.sampled_from([0, 500, 1000, 1000, 2000]),
    memory_bytes=st.sampled_from([0, 0, 0, 1]),
    gpus=st.sampled_from([0, 0, 1]),
)


class Link:
    """A connection that nothing goes through."""

    def send_message(self, *_: object) -> None:
        raise AssertionError

    send_stream = close = abort = send_message


@dataclass
class Machine:
    """One runner, and the decisions about it as the server takes them, without a database."""

    live: LiveJobs = field(default_factory=lambda: LiveJobs("/nowhere", 1))
    total: Capacity = field(default_factory=lambda: Capacity(2000, 4, GPUS))
    serial: int = 0

    def __post_init__(self) -> None:
        link = Link()
        self.live.pools["local"] = Pool("local")
        self.live.add_runner(
            LiveRunner(Runner("local", "local"), self.total, self.total, 0, link, link)
        )

    def submit(self, need: Resources, parent: LiveJob | None, *, attached: bool) -> None:
        self.serial += 1
        job = LiveJob(
            serial=self.serial, id=f"job{self.serial}", owner="me", project="mine", pool="local",
            name="", need=need, priority=0, retries=0, time_limit_ms=None, keep_alive_ms=0,
            grace_ms=0, attached=attached, created_ns=0, command_name="x",
            parent=None if parent is None else parent.id,
        )  # fmt: skip
        self.live.add(job)
        if len(self.live.queue("local")) == 1:
            grant = place(job.place, self.live.nodes("local"))
            if grant is not None:
                self.grant(job, grant.need, grant.gpus)
        self.schedule()

    def schedule(self) -> None:
        for job, loan, lender in self.live.families.loans("local"):
            self.grant(job, loan.need, loan.gpus, lender)
        for grant in self.live.queue("local").choose(self.live.nodes("local")):
            self.grant(self.live.jobs[grant.serial], grant.need, grant.gpus)

    def grant(
        self,
        job: LiveJob,
        need: Resources,
        gpus: tuple[str, ...],
        lender: Lender | None = None,
    ) -> None:
        runner = self.live.runners["local"]
        runner.free = runner.free.without(need, gpus)
        attempt = LiveAttempt(1000 + job.serial, 1, "local", need, gpus, 0)
        attempt.unpaid_cpus_milli = job.unpaid_cpus_milli
        if lender is not None:
            attempt.lender, attempt.borrows = lender, job.need
        self.live.hold(job, attempt)

    def end(self, job: LiveJob) -> None:
        if job.attempt is not None:
            self.live.release(job, job.attempt)
        self.live.drop(job)
        self.schedule()

    @property
    def running(self) -> list[LiveJob]:
        return [job for job in self.live.jobs.values() if job.attempt is not None]

    def check(self) -> None:
        """Nothing is held twice, nothing is lost, and nobody waits for what is there."""
        free = self.total
        lent: dict[int, list[LiveAttempt]] = {}
        for job in self.running:
            attempt = job.attempt
            assert attempt is not None
            if attempt.lender is None:
                free = free.without(attempt.holds, attempt.gpus)
                continue
            assert attempt.holds == NOTHING
            assert any(each.attempt is attempt.lender for each in self.running)
            lent.setdefault(attempt.lender.serial, []).append(attempt)
        for borrowers in lent.values():
            lender = borrowers[0].lender
            assert lender is not None
            assert sum(each.has.cpus_milli for each in borrowers) <= lender.has.cpus_milli
            assert sum(each.has.memory_bytes for each in borrowers) <= lender.has.memory_bytes
            ids = [gpu for each in borrowers for gpu in each.gpus]
            assert len(ids) == len(set(ids))
            assert set(ids) <= set(lender.gpus)
        assert self.live.runners["local"].free == free
        for job in self.live.jobs.values():
            if job.waiting and (loan := self.live.families.loan(job)) is not None:
                # Only behind a brother that came first, and waits for as much.
                older = self.live.families.children(job.parent or "")
                assert any(
                    each.serial < job.serial and each.waiting and each.attached for each in older
                ), (job, loan)


@given(
    st.lists(
        st.one_of(
            st.tuples(
                st.just("submit"), NEEDS, st.integers(0, 20), st.sampled_from([True, True, False])
            ),
            st.tuples(st.sampled_from(["end", "leave"]), st.integers(0, 20)),
        ),
        min_size=10,
        max_size=40,
    )
)
def test_what_children_borrow_is_their_parents_and_comes_back(
    steps: list[tuple[object, ...]],
) -> None:
    machine = Machine()
    for step in steps:
        running = machine.running
        match step:
            case ("submit", Resources() as need, int(which), bool(attached)):
                parent = running[which % len(running)] if which % 3 and running else None
                machine.submit(need, parent, attached=attached)
            case ("end", int(which)) if running:
                machine.end(running[which % len(running)])
            case ("leave", int(which)) if running:
                job = running[which % len(running)]
                job.detached = True
                machine.live.left_alone(job)
                machine.schedule()
        machine.check()
    while machine.live.jobs:
        running = machine.running or list(machine.live.jobs.values())
        machine.end(running[0])
    assert machine.live.runners["local"].free == machine.total
    families = machine.live.families
    assert not families._borrowers
    assert not families._waiting
    assert not families._children


def test_a_full_machine_with_nested_calls_comes_to_its_end() -> None:
    """Every CPU is held by a parent that waits, three levels deep."""
    machine = Machine()
    one = Resources(1000)
    for _ in range(2):
        machine.submit(one, None, attached=True)
    for _ in range(2):
        for parent in list(machine.running):
            if not machine.live.families.children(parent.id):
                machine.submit(one, parent, attached=True)
    assert len(machine.running) == 6
    machine.check()


def test_brothers_share_what_their_parent_holds() -> None:
    machine = Machine()
    machine.submit(Resources(2000), None, attached=True)
    (parent,) = machine.running
    for _ in range(8):
        machine.submit(Resources(1000), parent, attached=True)
    for left in range(7, 0, -1):
        assert len(machine.running) == 1 + min(2, left + 1)
        machine.check()
        machine.end(machine.running[1])
    assert len(machine.running) == 2


def test_a_pipelines_stage_lends_what_another_one_counts_for_it() -> None:
    machine = Machine()
    machine.total = Capacity(1000, 4, GPUS)
    runner = machine.live.runners["local"]
    runner.total = runner.free = machine.total
    machine.submit(Resources(1000), None, attached=True)
    (paying,) = machine.running
    paying.pipes = ("", "a pipe")
    machine.live._ends["a pipe"] = {paying}
    stage = LiveJob(
        serial=100, id="stage", owner="me", project="mine", pool="local", name="",
        need=Resources(1000), priority=0, retries=0, time_limit_ms=None, keep_alive_ms=0,
        grace_ms=0, attached=True, created_ns=0, command_name="x", pipes=("a pipe", ""),
    )  # fmt: skip
    machine.live.add(stage)
    machine.schedule()
    assert stage.attempt is not None
    machine.submit(Resources(1000), stage, attached=True)
    assert len(machine.running) == 3


def test_what_would_wait_for_ever_is_refused(tmp_path: Path) -> None:
    """Its parent waits for it, and holds what it needs."""

    async def check(world: World) -> None:
        _, _, token = await world.run(cpus=2)
        for cpus_milli in (2000, 6000):
            kind, told = await world.nested(token, cpus_milli=cpus_milli)
            assert kind == frames.ACCEPTED, told
        kind, told = await world.nested(token, cpus_milli=6001)
        assert (kind, told["code"]) == (frames.ERROR, "bad_request")
        assert "wait for ever" in told["message"]
        body = {"key": "detached", "argv": ["true"], "directory": "/", "cpus": 8}
        assert (await world.ask(token, "POST", "/jobs", json=body)).status_code == 201

    with_world(tmp_path, check)


def test_a_limit_of_running_jobs_keeps_no_parent_from_its_child(tmp_path: Path) -> None:
    async def check(world: World) -> None:
        limit = {"running_jobs": 1}
        assert (await world.made.ask("PUT", "/projects/red/limits", ADMIN, json=limit)).is_success
        _, _, token = await world.run(cpus=1)
        kind, told = await world.nested(token)
        assert kind == frames.ACCEPTED, told
        assert world.started(told["job"])

    with_world(tmp_path, check)


def test_children_of_a_restarted_server_borrow_again(tmp_path: Path) -> None:
    async def check(world: World) -> None:
        job, _, token = await world.run(cpus=8)
        child = (await world.nested(token))[1]["job"]
        live = world.made.execution.live
        found = live.find(child)
        assert found is not None
        assert found.attempt is not None
        assert found.attempt.lender is not None
        await world.made.execution.settle()
        again = Execution(world.made.database, world.made.keys, Relay(), str(tmp_path / "logs"))
        await again.load()
        child_again, parent_again = again.live.find(child), again.live.find(job)
        assert child_again is not None
        assert child_again.attempt is not None
        assert parent_again is not None
        assert child_again.attempt.lender is parent_again.attempt
        assert child_again.lineage == (job,)

    with_world(tmp_path, check)


def test_who_outlives_its_parent_still_counts() -> None:
    machine = Machine(total=Capacity(1000, 4, GPUS))
    one = Resources(1000)
    machine.submit(one, None, attached=True)
    (parent,) = machine.running
    machine.submit(one, parent, attached=True)
    (child,) = machine.live.families.children(parent.id)
    machine.submit(one, child, attached=True)
    machine.submit(one, parent, attached=True)
    machine.end(child)
    machine.check()
    (grandchild,) = [job for job in machine.running if job is not parent]
    assert grandchild.parent == child.id  # its brother's child has the share, which waits
    machine.end(parent)
    machine.check()
    assert machine.running == [grandchild]
    assert machine.live.runners["local"].free.cpus_milli == 0
    machine.end(grandchild)
    assert len(machine.running) == 1
