"""What a pool's scheduler promises, for every pool and every sequence of jobs."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scheduling.world import Job, World, capacity
from updraft.model.job import Resources
from updraft.scheduling.capacity import Capacity, Node
from updraft.scheduling.entries import Entry
from updraft.scheduling.queue import Headroom, Party
from updraft.scheduling.scheduler import PoolScheduler

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


@settings(max_examples=300)
@given(NODES, jobs())
def test_backfill_never_delays_a_reservation(nodes: list[Node], queue: list[Job]) -> None:
    """Of one priority, and with nothing preempted, whoever has a time keeps it."""
    queue = [replace(job, entry=replace(job.entry, priority=0, preemptible=False)) for job in queue]
    world = World(nodes)
    world.run(queue)
    for serial, times in world.reserved.items():
        for moment, at in times:
            assert any(moment <= start <= at for start in world.starts[serial])


def test_an_array_is_one_entry_and_its_grants_carry_many_tasks() -> None:
    scheduler = PoolScheduler()
    for at in range(4):
        scheduler.put_node(Node(f"n{at}", capacity(8)), 0.0)
    scheduler.submit(Entry(1, PARTIES[0], Resources(1000), count=1_000_000), 0.0)
    grants = scheduler.decide(0.0)
    assert [grant.tasks for grant in grants] == [8] * 4
    assert scheduler.entries[1].left == 1_000_000 - 32
