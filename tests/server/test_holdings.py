"""What running jobs hold is what they took, and no limit is passed by granting."""

from hypothesis import given
from hypothesis import strategies as st

from updraft.model.job import Resources
from updraft.model.limits import Limits, Usage
from updraft.scheduling.capacity import Capacity, Node
from updraft.scheduling.queue import Party, PoolQueue, Waiting
from updraft.server.services.holdings import Holdings

PARTIES = [Party(project, owner) for project in ("red", "blue") for owner in ("ann", "ben")]
KEYS: list[Party | str] = [*PARTIES, "red", "blue"]
needs = st.builds(
    Resources,
    cpus_milli=st.integers(0, 3000),
    memory_bytes=st.integers(0, 3),
    gpus=st.integers(0, 1),
)
limits = st.builds(
    Limits,
    running_jobs=st.none() | st.integers(0, 3),
    cpus_milli=st.none() | st.integers(0, 5000),
    memory_bytes=st.none() | st.integers(0, 5),
    gpus=st.none() | st.integers(0, 2),
)


def within(used: Usage, limit: Limits) -> bool:
    pairs = (
        (used.running_jobs, limit.running_jobs),
        (used.cpus_milli, limit.cpus_milli),
        (used.memory_bytes, limit.memory_bytes),
        (used.gpus, limit.gpus),
    )
    return all(most is None or count <= most for count, most in pairs)


@given(
    st.lists(st.tuples(st.sampled_from(PARTIES), needs), max_size=20),
    st.lists(st.integers(0, 30), max_size=20),
    st.dictionaries(st.sampled_from(KEYS), limits),
)
def test_no_limit_is_passed_and_what_waits_has_a_true_reason(
    jobs: list[tuple[Party, Resources]], ends: list[int], allowed: dict[Party | str, Limits]
) -> None:
    holdings, queue = Holdings(), PoolQueue()
    none = Limits()
    holdings.limits_of = lambda project, owner: (
        allowed.get(project, none),
        allowed.get(Party(project, owner), none),
    )
    for serial, (party, need) in enumerate(jobs):
        queue.push(Waiting(serial, 0, need, party))
    machine = Capacity(1 << 40, 1 << 40, frozenset(map(str, range(1000))))
    running: list[tuple[Party, Resources]] = []
    for end in [*ends, 0]:
        headrooms = holdings.headrooms(queue.parties())
        for grant in queue.choose([Node("n", machine)], headrooms):
            party = jobs[grant.serial][0]
            holdings.take(party, "pool", grant.need)
            running.append((party, grant.need))
        for key in KEYS:
            mine = [need for party, need in running if key in (party, party.project)]
            used = holdings.used(key)
            assert used == Usage(
                len(mine),
                sum(need.cpus_milli for need in mine),
                sum(need.gpus for need in mine),
                sum(need.memory_bytes for need in mine),
            )
            assert within(used, allowed.get(key, none))
        # There is room on the machine: whoever is first of a project waits for a limit.
        for project in ("red", "blue"):
            _, first = queue.waiting_of(project)
            assert first is None or holdings.why_waiting(first.party, first.need) is not None
        assert holdings.running_in("pool") == len(running)
        if running:
            party, need = running.pop(end % len(running))
            holdings.give_back(party, "pool", need)
    while running:
        party, need = running.pop()
        holdings.give_back(party, "pool", need)
    assert holdings.used("red") == Usage()
    assert holdings.running_in("pool", "red") == 0
