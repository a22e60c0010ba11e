"""What a pool's scheduler promises, for every pool and every sequence of jobs."""

from dataclasses import replace
from itertools import combinations
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scheduling.world import Job, World, capacity
from updraft.model.job import Resources
from updraft.scheduling.capacity import Capacity, Node
from updraft.scheduling.entries import Entry
from updraft.scheduling.queue import Headroom, Party
from updraft.scheduling.scheduler import PoolScheduler
from updraft.scheduling.shares import Fairness

PARTIES = [Party("lab", "ann"), Party("lab", "ben"), Party("shop", "ben"), Party("shop", "eve")]

NEEDS = st.builds(
    Resources,
    cpus_milli=st.sampled_from([0, 500, 1000, 2000, 4000]),
    memory_bytes=st.sampled_from([0, 0, 1 << 20, 1 << 29]),
    gpus=st.sampled_from([0, 0, 0, 1, 2]),
)
NODES = st.lists(
    st.builds(
        Node,
        st.just(""),
        st.builds(
            Capacity,
            st.sampled_from([1000, 2000, 4000, 8000]),
            st.sampled_from([1 << 29, 1 << 30]),
            st.sampled_from([frozenset(), frozenset("ab"), frozenset("abcd")]),
        ),
        st.sampled_from([None, None, None, "ann", "eve"]),
        st.sampled_from(["", "x", "x", "y"]),
    ),
    min_size=1,
    max_size=5,
).map(lambda nodes: [replace(node, name=f"n{at}") for at, node in enumerate(nodes)])


@st.composite
def entries(draw: st.DrawFn, serial: int) -> Entry:
    kind = draw(st.sampled_from(["single", "single", "array", "gang"]))
    count = 1 if kind == "single" else draw(st.integers(2, 5))
    return Entry(
        serial=serial,
        party=draw(st.sampled_from(PARTIES)),
        need=draw(NEEDS),
        priority=draw(st.sampled_from([0, 0, 0, 1, -1])),
        count=count,
        max_parallel=draw(st.sampled_from([None, 1, 2])) if kind == "array" else None,
        gang=kind == "gang",
        time_limit_seconds=draw(st.sampled_from([None, 10.0, 50.0, 200.0])),
        preemptible=draw(st.sampled_from([False, False, True])),
    )


@st.composite
def jobs(draw: st.DrawFn) -> list[Job]:
    comes = sorted(draw(st.lists(st.sampled_from([0.0, 5.0, 20.0, 70.0, 100.0]), max_size=12)))
    return [
        Job(draw(entries(serial)), moment, draw(st.sampled_from([1.0, 10.0, 30.0, 100.0])))
        for serial, moment in enumerate(comes, 1)
    ]


def fits_somewhere(entry: Entry, nodes: list[Node]) -> bool:
    """Whether a job can start when nothing else runs, counted without the scheduler."""
    rooms: dict[str, int] = {}
    for node in nodes:
        free, room = node.free, 0
        while node.takes(entry.party.owner) and free.fits(entry.need) and room < entry.count:
            free, room = free.take(entry.need)[0], room + 1
        network = node.peer_network or node.name
        rooms[network] = rooms.get(network, 0) + room
    return max(rooms.values()) >= (entry.count if entry.gang else 1)


@settings(max_examples=300)
@given(NODES, jobs())
def test_what_starts_is_free_gangs_start_whole_and_all_that_fits_ends(
    nodes: list[Node], queue: list[Job]
) -> None:
    world = World(nodes)
    world.run(queue)
    for job in queue:
        if fits_somewhere(job.entry, nodes):
            assert world.waiting[job.entry.serial] == 0
        else:
            assert job.entry.serial not in world.starts
    assert not world.running


@settings(max_examples=150)
@given(NODES, jobs(), st.integers(1, 3), st.integers(1, 3))
def test_limits_of_projects_and_users_hold(
    nodes: list[Node], queue: list[Job], tasks: int, cpus: int
) -> None:
    limits: dict[Party | str, Headroom] = {
        "lab": Headroom(tasks=tasks),
        PARTIES[3]: Headroom(cpus_milli=cpus * 1000),
    }
    World(nodes, limits).run(queue)  # which checks it


def calm(queue: list[Job]) -> list[Job]:
    """The same jobs, all of one priority, and none that gives way."""
    return [replace(job, entry=replace(job.entry, priority=0, preemptible=False)) for job in queue]


@settings(max_examples=300)
@given(NODES, jobs(), st.booleans())
def test_backfill_never_delays_a_reservation(
    nodes: list[Node], queue: list[Job], settles: bool
) -> None:
    world = World(nodes, settles=settles)
    world.run(calm(queue))
    for serial, times in world.reserved.items():
        for moment, at in times:
            assert any(moment <= start <= at for start in world.starts[serial])


@settings(max_examples=300)
@given(NODES, jobs(), st.sampled_from(["exact", "none"]))
def test_the_first_that_waits_starts_no_later_than_without_backfill(
    nodes: list[Node], queue: list[Job], limits: str
) -> None:
    """Where time limits are exact, or where there are none."""
    queue = [
        replace(
            job,
            entry=replace(
                job.entry,
                count=job.entry.count if job.entry.gang else 1,
                time_limit_seconds=job.takes if limits == "exact" else None,
            ),
        )
        for job in calm(queue)
    ]
    world, strict = World(nodes), World(nodes)
    world.run(queue)
    with mock.patch("updraft.scheduling.scheduler._LOOKAHEAD", 1):
        strict.run(queue)
    assert world.first_held == strict.first_held
    if world.first_held is not None:
        assert world.starts[world.first_held] <= strict.starts[world.first_held]


@settings(max_examples=150)
@given(NODES, jobs())
def test_equal_jobs_of_a_party_start_in_their_order(nodes: list[Node], queue: list[Job]) -> None:
    world = World(nodes)
    world.run(calm(queue))
    for first, second in combinations(queue, 2):
        one, two = first.entry, second.entry
        alike = (one.party, one.need, one.count) == (two.party, two.need, two.count)
        if alike and one.count == 1 and one.time_limit_seconds == two.time_limit_seconds:
            assert world.starts.get(one.serial, [0]) <= world.starts.get(two.serial, [1e9])


@settings(max_examples=150)
@given(NODES, jobs())
def test_the_same_events_are_the_same_decisions(nodes: list[Node], queue: list[Job]) -> None:
    one, two = World(nodes), World(nodes)
    one.run(queue)
    two.run(queue)
    assert one.starts == two.starts


@settings(max_examples=200)
@given(NODES, jobs(), st.integers(0, 4))
def test_nodes_come_and_go_and_nothing_is_counted_twice(
    nodes: list[Node], queue: list[Job], gone: int
) -> None:
    world = World(nodes)
    world.run(queue, until=20.0)
    name = nodes[gone % len(nodes)].name
    world.scheduler.remove_node(name, world.now)
    before = set(world.running)
    world.decide()
    assert not any(world.running[each][0].node == name for each in set(world.running) - before)
    world.scheduler.put_node(nodes[gone % len(nodes)], world.now)
    world.decide()
    world.run([])
    assert not world.running


@settings(max_examples=200)
@given(NODES, jobs(), st.data())
def test_what_is_withdrawn_never_starts_and_keeps_nothing(
    nodes: list[Node], queue: list[Job], data: st.DataObject
) -> None:
    world = World(nodes)
    world.run(queue, until=5.0)
    waiting = sorted(serial for serial, tasks in world.waiting.items() if tasks)
    if waiting:
        serial = data.draw(st.sampled_from(waiting))
        started = len(world.starts.get(serial, []))
        world.scheduler.withdraw(serial, world.now)
        entry = world.jobs[serial].entry
        world.run([])
        if not entry.preemptible:  # else what runs of it may wait again
            assert len(world.starts.get(serial, [])) == started


def test_who_used_less_goes_first_and_then_who_came_first() -> None:
    ann, ben, eve = PARTIES[0], PARTIES[1], PARTIES[3]
    world = World([Node("n", capacity(2))])
    one = Resources(1000)
    long = [Job(Entry(serial, ann, one, time_limit_seconds=500.0), 0.0, 500.0) for serial in (1, 2)]
    later = [
        Job(Entry(3, ann, one), 1.0, 10.0),
        Job(Entry(4, ann, one), 1.0, 10.0),
        Job(Entry(5, eve, one), 2.0, 10.0),
        Job(Entry(6, ben, one), 3.0, 10.0),
    ]
    world.run([*long, *later])
    assert world.starts[3] == [500.0], "it had its reservation before others came"
    assert world.starts[5] == [500.0]
    assert world.starts[6] == world.starts[4] == [510.0]


def test_a_new_user_gets_half_of_what_is_freed_beside_a_long_array() -> None:
    ann, eve = PARTIES[0], PARTIES[3]
    world = World([Node("n", capacity(8))])
    world.run(
        [
            Job(Entry(1, ann, Resources(1000), count=800), 0.0, 10.0),
            Job(Entry(2, eve, Resources(1000), count=800), 5.0, 10.0),
        ],
        until=200.0,
    )
    share = [sum(1 for start in world.starts[serial] if start > 100) for serial in (1, 2)]
    assert abs(share[0] - share[1]) <= 8


def test_nobody_waits_longer_than_the_patience_while_others_with_less_usage_come() -> None:
    ann = PARTIES[0]
    world = World([Node("n", capacity(1))], fairness=Fairness(patience_seconds=300.0))
    used = Job(Entry(1, ann, Resources(1000), time_limit_seconds=1000.0), 0.0, 1000.0)
    waits = Job(Entry(2, ann, Resources(1000), time_limit_seconds=10.0), 1006.0, 10.0)
    strangers = [
        Job(
            Entry(at, Party("shop", f"new{at}"), Resources(1000), time_limit_seconds=10.0),
            990.0 + 5 * at if at > 3 else 1005.0,
            10.0,
        )
        for at in range(3, 400)
    ]
    before = Job(Entry(400, Party("shop", "eve"), Resources(1000)), 1005.5, 10.0)
    world.run([used, waits, before, *strangers])
    assert 1300.0 <= world.starts[2][0] <= 1400.0


def test_a_large_job_first_in_line_starts_when_the_time_limits_say() -> None:
    world = World([Node("n", capacity(4))], settles=True)
    ann, eve = PARTIES[0], PARTIES[3]
    world.run(
        [
            Job(Entry(1, ann, Resources(2000), time_limit_seconds=100.0), 0.0, 100.0),
            Job(Entry(2, eve, Resources(4000), time_limit_seconds=100.0), 1.0, 10.0),
            Job(Entry(3, ann, Resources(1000), time_limit_seconds=200.0), 2.0, 200.0),
            Job(Entry(4, ann, Resources(1000), time_limit_seconds=50.0), 3.0, 50.0),
            Job(Entry(5, ann, Resources(1000)), 4.0, 5.0),
        ]
    )
    assert world.starts[2] == [100.0]
    assert world.starts[4] == [3.0], "it ends before the place is needed"
    assert min(world.starts[3][0], world.starts[5][0]) >= 100.0


def test_what_needs_no_resource_that_is_short_may_use_the_rest_of_a_kept_node() -> None:
    world = World([Node("n", capacity(8, gpus=2))])
    ann, eve = PARTIES[0], PARTIES[3]
    world.run(
        [
            Job(Entry(1, ann, Resources(1000, gpus=2)), 0.0, 100.0),
            Job(Entry(2, eve, Resources(2000, gpus=2)), 1.0, 10.0),
            Job(Entry(3, ann, Resources(5000)), 2.0, 500.0),
            Job(Entry(4, ann, Resources(1000)), 3.0, 500.0),
        ]
    )
    assert world.starts[2] == [100.0]
    assert world.starts[3] == [2.0]
    assert world.starts[4][0] >= 100.0, "two CPUs are kept for the one that waits for GPUs"


def test_an_array_is_one_entry_and_its_grants_carry_many_tasks() -> None:
    scheduler = PoolScheduler()
    for at in range(4):
        scheduler.put_node(Node(f"n{at}", capacity(8)), 0.0)
    scheduler.submit(Entry(1, PARTIES[0], Resources(1000), count=1_000_000), 0.0)
    grants = scheduler.decide(0.0)
    assert [grant.tasks for grant in grants] == [8] * 4
    assert scheduler.entries[1].left == 1_000_000 - 32
