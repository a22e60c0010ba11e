"""Who starts next: properties of every queue and every pool."""

from dataclasses import replace
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from updraft.model.job import Resources
from updraft.scheduling.capacity import NOTHING, Capacity, Node
from updraft.scheduling.queue import Grant, Headroom, Party, PoolQueue, Waiting
from updraft.scheduling.reasons import never_fits, why_waiting

GPUS = ["gpu-a", "gpu-b", "gpu-c", "gpu-d"]
ME = Party("default", "me")

NEEDS = st.builds(
    Resources,
    cpus_milli=st.sampled_from([0, 100, 500, 1000, 2000, 5000]),
    memory_bytes=st.sampled_from([0, 0, 1 << 20, 1 << 30]),
    gpus=st.sampled_from([0, 0, 0, 1, 2, 5]),
)
CAPACITIES = st.builds(
    Capacity,
    cpus_milli=st.integers(0, 10_000),
    memory_bytes=st.integers(0, 4 << 30),
    gpus=st.frozensets(st.sampled_from(GPUS)),
)
QUEUES = st.lists(
    st.builds(
        Waiting,
        serial=st.integers(0),
        priority=st.integers(-2, 2),
        need=NEEDS,
        party=st.sampled_from([ME, Party("default", "you"), Party("other", "you")]),
    ),
    max_size=12,
    unique_by=lambda waiting: waiting.serial,
).map(lambda queue: sorted(queue, key=lambda waiting: waiting.order))


def choose(waiting: list[Waiting], free: Capacity) -> tuple[list[Grant], Capacity]:
    """Put these into a queue, in any order, and let it choose."""
    queue = PoolQueue()
    for each in reversed(waiting):
        queue.push(each)
    grants = queue.choose([Node("local", free)])
    assert len(queue) == len(waiting) - len(grants)
    left = free
    for grant in grants:
        left = left.without(grant.need, grant.gpus)
    return grants, left


@given(QUEUES)
def test_a_place_in_the_queue_is_what_stands_before_it(waiting: list[Waiting]) -> None:
    queue = PoolQueue()
    for each in waiting:
        queue.push(each)
    costly = [each for each in waiting if each.need != NOTHING]
    for place, each in enumerate(costly):
        assert queue.ahead_of(each) == place
    for each in waiting[::2]:
        queue.discard(each)
        queue.discard(each)
    assert len(queue) == len(waiting[1::2])
    for place, each in enumerate(each for each in waiting[1::2] if each.need != NOTHING):
        assert queue.ahead_of(each) == place


@given(QUEUES, CAPACITIES)
def test_what_starts_never_exceeds_what_is_free(queue: list[Waiting], free: Capacity) -> None:
    grants, left = choose(queue, free)
    needs = {waiting.serial: waiting.need for waiting in queue}
    started = [needs[grant.serial] for grant in grants]
    assert left.cpus_milli == free.cpus_milli - sum(need.cpus_milli for need in started) >= 0
    assert left.memory_bytes == free.memory_bytes - sum(need.memory_bytes for need in started) >= 0
    given_out = [gpu for grant in grants for gpu in grant.gpus]
    assert len(set(given_out)) == len(given_out)
    assert frozenset(given_out) | left.gpus == free.gpus
    assert not left.gpus.intersection(given_out)
    for grant in grants:
        assert len(grant.gpus) == needs[grant.serial].gpus


@given(QUEUES, CAPACITIES)
def test_tasks_start_in_the_order_of_the_queue_and_once(
    queue: list[Waiting], free: Capacity
) -> None:
    places = {waiting.serial: place for place, waiting in enumerate(queue)}
    costs = {waiting.serial for waiting in queue if waiting.need != NOTHING}
    started = [grant.serial for grant in choose(queue, free)[0]]
    order = [places[serial] for serial in started if serial in costs]
    assert order == sorted(order)
    assert len(set(started)) == len(started)


@given(QUEUES, CAPACITIES)
def test_nothing_overtakes_the_first_that_does_not_fit_but_what_needs_nothing(
    queue: list[Waiting], free: Capacity
) -> None:
    started = {grant.serial for grant in choose(queue, free)[0]}
    blocked = False
    for waiting in queue:
        if waiting.need == NOTHING:
            assert waiting.serial in started
        elif waiting.serial in started:
            assert not blocked
        else:
            if not blocked:
                # It is the first: what is left, before anything behind it, does not hold it.
                _, left = choose(queue[: queue.index(waiting)], free)
                assert not left.fits(waiting.need)
            blocked = True


@given(QUEUES, CAPACITIES)
def test_a_second_look_starts_nothing_more(queue: list[Waiting], free: Capacity) -> None:
    grants, left = choose(queue, free)
    started = {grant.serial for grant in grants}
    rest = [waiting for waiting in queue if waiting.serial not in started]
    assert choose(rest, left) == ([], left)


@given(QUEUES, CAPACITIES)
def test_what_is_given_back_is_what_was_taken(queue: list[Waiting], free: Capacity) -> None:
    grants, left = choose(queue, free)
    needs = {waiting.serial: waiting.need for waiting in queue}
    for grant in grants:
        left = left.give_back(needs[grant.serial], grant.gpus)
    assert left == free


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(0)), unique_by=lambda each: each[1]))
def test_higher_priority_goes_first_and_then_who_came_first(
    queue: list[tuple[int, int]],
) -> None:
    waiting = [Waiting(serial, priority, NOTHING, ME) for priority, serial in queue]
    ordered = sorted(waiting, key=lambda each: each.order)
    for first, second in pairwise(ordered):
        assert first.priority >= second.priority
        if first.priority == second.priority:
            assert first.serial < second.serial


@given(st.lists(st.tuples(NEEDS, st.sets(st.sampled_from(GPUS))), max_size=4), CAPACITIES)
def test_what_runs_already_is_counted_with_the_very_devices_it_has(
    running: list[tuple[Resources, set[str]]], total: Capacity
) -> None:
    """A runner that comes back may have less than its tasks hold (a machine that was resized)."""
    free = total
    for need, gpus in running:
        free = free.without(need, gpus)
    assert free.cpus_milli == total.cpus_milli - sum(need.cpus_milli for need, _ in running)
    assert free.gpus == total.gpus.difference(*(gpus for _, gpus in running))
    # Nothing that is missing is given away, and what needs nothing still runs.
    assert free.fits(NOTHING)
    grants, _ = choose([Waiting(1, 0, Resources(1), ME), Waiting(2, 0, NOTHING, ME)], free)
    assert {grant.serial for grant in grants} == ({1, 2} if free.cpus_milli > 0 else {2})


@given(NEEDS, CAPACITIES)
def test_what_never_fits_is_told_with_the_flag_to_lower(need: Resources, total: Capacity) -> None:
    problem = never_fits(need, [total], "local")
    assert (problem is None) == total.fits(need)
    if problem is not None:
        assert "lower --" in problem
        flag = problem.rsplit("--", 1)[1]
        lowered = {"cpus": "cpus_milli", "memory": "memory_bytes", "gpus": "gpus"}[flag]
        once = never_fits(replace(need, **{lowered: 0}), [total], "local")
        assert once is None or flag not in once


@given(NEEDS, CAPACITIES, NEEDS, st.integers(0, 3))
def test_a_reason_is_true(need: Resources, total: Capacity, held: Resources, ahead: int) -> None:
    free = total.without(held, ())
    reason = why_waiting(need, ahead, [free], "local")
    if ahead:
        assert reason == f"pool local is full ({ahead} ahead)"
    elif free.fits(need):
        assert reason == "pool local is about to start it"
    else:
        assert "waits for" in reason
        assert ("CPU" in reason) == (need.cpus_milli > max(free.cpus_milli, 0))
        assert "-" not in reason


# -- several runners, several parties

NODES = st.lists(
    st.builds(Node, st.just(""), CAPACITIES, st.sampled_from([None, None, "me", "you"])),
    min_size=1,
    max_size=4,
).map(lambda nodes: [replace(node, name=f"n{at}") for at, node in enumerate(nodes)])


def chosen(waiting: list[Waiting], nodes: list[Node], **limits: Headroom) -> dict[int, Grant]:
    queue = PoolQueue()
    for each in waiting:
        queue.push(each)
    headrooms: dict[Party | str, Headroom] = dict(limits.items())
    return {grant.serial: grant for grant in queue.choose(nodes, headrooms)}


@given(QUEUES, NODES)
def test_no_runner_is_given_more_than_it_has_or_another_owners_task(
    queue: list[Waiting], nodes: list[Node]
) -> None:
    started = chosen(queue, nodes)
    by_serial = {each.serial: each for each in queue}
    for node in nodes:
        free = node.free
        for grant in started.values():
            if grant.node == node.name:
                assert node.serves in (None, by_serial[grant.serial].party.owner)
                assert set(grant.gpus) <= free.gpus
                free = free.without(grant.need, grant.gpus)
        assert min(free.cpus_milli, free.memory_bytes) >= 0


@given(QUEUES, NODES)
def test_nothing_takes_a_runner_that_one_before_it_waits_for(
    queue: list[Waiting], nodes: list[Node]
) -> None:
    started = chosen(queue, nodes)
    held: set[str] = set()  # runners that somebody before waits for
    behind: set[Party] = set()
    for waiting in queue:
        if waiting.need == NOTHING:
            continue
        grant = started.get(waiting.serial)
        if grant is None:
            if waiting.party not in behind:
                held |= {node.name for node in nodes if node.takes(waiting.party.owner)}
            behind.add(waiting.party)
        else:
            assert grant.node not in held
            assert waiting.party not in behind


@given(QUEUES, NODES, st.integers(0, 3), st.integers(0, 3000))
def test_limits_hold_and_hold_back_nobody_elses_tasks(
    queue: list[Waiting], nodes: list[Node], tasks: int, cpus_milli: int
) -> None:
    limit = Headroom(tasks=tasks, cpus_milli=cpus_milli)
    started = chosen(queue, nodes, default=limit)
    mine = {each.serial for each in queue if each.party.project == "default"}
    taken = [grant for serial, grant in started.items() if serial in mine]
    assert len(taken) <= tasks
    assert sum(grant.need.cpus_milli for grant in taken) <= cpus_milli
    # Without the limited project's tasks the others start as they do beside it at its limit.
    nobody = chosen(queue, nodes, default=Headroom(tasks=0))
    others = chosen([each for each in queue if each.serial not in mine], nodes)
    assert nobody == others


def test_the_fullest_runner_that_has_room_is_taken_so_that_whole_ones_stay_free() -> None:
    nodes = [
        Node("whole", Capacity(8000, 1 << 30, frozenset(GPUS))),
        Node("begun", Capacity(3000, 1 << 30, frozenset(GPUS[:1]))),
        Node("full", Capacity(500, 1 << 30, frozenset())),
    ]
    started = chosen([Waiting(1, 0, Resources(1000), ME)], nodes)
    assert started[1].node == "begun"


def test_two_stages_that_are_granted_at_once_give_back_what_they_took() -> None:
    """A stage's need falls to nothing once another runs; what it took is in its grant."""
    queue = PoolQueue()
    for serial in (1, 2):
        queue.push(Waiting(serial, 0, Resources(1000), ME))
    grants = queue.choose([Node("local", Capacity(2000, 0, frozenset()))])
    assert [grant.need for grant in grants] == [Resources(1000)] * 2
