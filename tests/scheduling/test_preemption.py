"""Who gives way: the fewest, the youngest first, and nobody in vain."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scheduling.test_scheduler import PARTIES
from tests.scheduling.world import Job, World, capacity
from updraft.model.job import Resources
from updraft.scheduling.capacity import Node
from updraft.scheduling.entries import Entry, Preemption
from updraft.scheduling.preemption import find_victims
from updraft.scheduling.queue import Grant, Headroom
from updraft.scheduling.scheduler import PoolScheduler

ANN, BEN, EVE = PARTIES[0], PARTIES[1], PARTIES[3]


def running(
    sizes: list[tuple[int, bool]], cpus: int
) -> tuple[PoolScheduler, dict[int, tuple[int, bool]]]:
    """A node on which single tasks of these sizes run, the later ones younger; some give way."""
    scheduler = PoolScheduler()
    scheduler.put_node(Node("n", capacity(cpus)), 0.0)
    started = {}
    for serial, (size, preemptible) in enumerate(sizes, 1):
        if size * 1000 <= scheduler.nodes.hosts["n"].cpus_milli:
            entry = Entry(serial, ANN, Resources(size * 1000), preemptible=preemptible)
            grant = Grant(serial, "n", entry.need, ())
            scheduler.started(entry, grant, float(serial))
            started[serial] = (size, preemptible)
    return scheduler, started


@settings(max_examples=300)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.booleans()), max_size=8),
    st.integers(1, 16),
    st.integers(1, 16),
)
def test_none_of_those_who_give_way_could_have_stayed(
    sizes: list[tuple[int, bool]], cpus: int, asked: int
) -> None:
    scheduler, started = running(sizes, cpus)
    free = scheduler.nodes.hosts["n"].cpus_milli // 1000
    may = {serial: size for serial, (size, preemptible) in started.items() if preemptible}
    victims = find_victims(scheduler.nodes, Entry(99, EVE, Resources(asked * 1000)))
    if victims is None or free >= asked:
        assert free >= asked or asked > cpus or free + sum(may.values()) < asked
        return
    chosen = [held.queued.entry.serial for _, held, _ in victims.held]
    assert victims.parts == {"n": 1}
    assert set(chosen) <= may.keys()
    freed = free + sum(may[serial] for serial in chosen)
    assert freed >= asked
    for serial in chosen:
        assert freed - may[serial] < asked
    alone = [serial for serial, size in may.items() if free + size >= asked]
    if alone:
        assert chosen == [max(alone)], "one that is enough, and the youngest of those"


def test_those_who_give_way_wait_again_and_end_in_the_end() -> None:
    world = World([Node("n", capacity(4))])
    world.run(
        [
            Job(Entry(1, ANN, Resources(1000), count=6, preemptible=True), 0.0, 100.0),
            Job(Entry(2, EVE, Resources(2000)), 10.0, 50.0),
        ]
    )
    assert world.preempted == [Preemption(1, "n", 2, by=2)]
    assert world.starts[2] == [10.0]
    assert len(world.starts[1]) == 8
    assert world.waiting[1] == 0


def test_a_gang_gives_way_as_a_whole_and_makes_way_only_for_all_ranks() -> None:
    nodes = [Node(f"n{at}", capacity(2), peer_network="x") for at in range(3)]
    world = World(nodes)
    world.run(
        [
            Job(Entry(1, ANN, Resources(2000), count=2, gang=True, preemptible=True), 0.0, 100.0),
            Job(Entry(2, BEN, Resources(2000)), 1.0, 100.0),
            Job(Entry(3, EVE, Resources(2000), count=3, gang=True), 5.0, 10.0),
        ],
        until=6.0,
    )
    assert world.preempted == [], "one node stays taken, whoever gives way"
    assert 3 not in world.starts
    world.scheduler.withdraw(3, world.now)
    world.run([Job(Entry(4, EVE, Resources(2000)), 7.0, 10.0)])
    assert sorted((each.node, each.tasks) for each in world.preempted) == [("n1", 1), ("n2", 1)]
    assert world.starts[4] == [7.0]


def test_equals_do_not_give_way_to_each_other_and_higher_priority_gets_its_place() -> None:
    world = World([Node("n", capacity(1))])
    one = Resources(1000)
    world.run(
        [
            Job(Entry(1, ANN, one, preemptible=True), 0.0, 100.0),
            Job(Entry(2, BEN, one, preemptible=True), 1.0, 10.0),
            Job(Entry(3, EVE, one, priority=1, preemptible=True), 2.0, 10.0),
        ]
    )
    assert world.preempted == [Preemption(1, "n", 1, by=3)]
    assert world.starts[3] == [2.0]


def test_a_place_that_others_leave_is_nobody_elses() -> None:
    scheduler = PoolScheduler()
    scheduler.put_node(Node("n", capacity(2)), 0.0)
    first = Entry(1, ANN, Resources(2000), preemptible=True)
    scheduler.submit(first, 0.0)
    [grant] = scheduler.decide(0.0)
    assert isinstance(grant, Grant)
    scheduler.submit(Entry(2, EVE, Resources(1000)), 1.0)
    assert scheduler.decide(1.0) == [Preemption(1, "n", 1, by=2)]
    scheduler.submit(Entry(3, BEN, Resources(2000), priority=5), 2.0)
    assert scheduler.decide(2.0) == []
    scheduler.ended(grant, 3.0, again=True)
    assert scheduler.decide(3.0) == [Grant(2, "n", Resources(1000), ())]


def test_a_promised_place_counts_against_its_owners_limit() -> None:
    scheduler = PoolScheduler()
    scheduler.put_node(Node("n", capacity(2)), 0.0)
    scheduler.submit(Entry(1, ANN, Resources(2000), preemptible=True), 0.0)
    [grant] = scheduler.decide(0.0)
    assert isinstance(grant, Grant)
    for serial in (2, 3):
        scheduler.submit(Entry(serial, EVE, Resources(1000)), 1.0)
    assert scheduler.decide(1.0, {EVE: Headroom(tasks=1)}) == [Preemption(1, "n", 1, by=2)]
    scheduler.ended(grant, 2.0)
    granted = scheduler.decide(2.0, {EVE: Headroom(tasks=1)})
    assert granted == [Grant(2, "n", Resources(1000), ())]


def test_who_is_withdrawn_leaves_the_place_it_was_promised() -> None:
    scheduler = PoolScheduler()
    scheduler.put_node(Node("n", capacity(1)), 0.0)
    scheduler.submit(Entry(1, ANN, Resources(1000), preemptible=True), 0.0)
    [grant] = scheduler.decide(0.0)
    assert isinstance(grant, Grant)
    scheduler.submit(Entry(2, EVE, Resources(1000)), 1.0)
    scheduler.decide(1.0)
    scheduler.withdraw(2, 2.0)
    scheduler.ended(grant, 3.0, again=True)
    assert scheduler.decide(3.0) == [Grant(1, "n", Resources(1000), ())]
