"""Where a job stands, as a person reads it."""

import pytest

from tests.scheduling.test_scheduler import PARTIES
from tests.scheduling.world import capacity
from updraft.model.job import Resources
from updraft.scheduling.capacity import Node
from updraft.scheduling.entries import Entry
from updraft.scheduling.queue import Headroom, Party
from updraft.scheduling.scheduler import PoolScheduler
from updraft.scheduling.standing import Standing, stand

ANN, BEN, EVE = PARTIES[0], PARTIES[1], PARTIES[3]


def scheduler_with(*entries: Entry, cpus: int = 4) -> PoolScheduler:
    """A pool of one node, to which these came one after another."""
    scheduler = PoolScheduler()
    scheduler.put_node(Node("n", capacity(cpus, gpus=2), peer_network="x"), 0.0)
    for now, entry in enumerate(entries):
        scheduler.submit(entry, float(now))
        scheduler.decide(float(now))
    return scheduler


def full(limit: float | None = 100.0) -> Entry:
    return Entry(1, ANN, Resources(4000), time_limit_seconds=limit)


def waiting(serial: int, party: Party = EVE, priority: int = 0, count: int = 1) -> Entry:
    return Entry(serial, party, Resources(2000), priority, count, time_limit_seconds=10.0)


CASES = {
    "first, by a time limit": (
        [full(), waiting(2)],
        2,
        Standing(0, 0, None, "next; waits for 2 CPUs to be free", 100.0,
                 "by the time limits of 1 running task"),
    ),
    "first, without a time limit": (
        [full(None), waiting(2)],
        2,
        Standing(0, 0, None, "next; waits for 2 CPUs to be free", None,
                 "unknown: it waits for tasks without a time limit"),
    ),
    "behind another": (
        [full(), waiting(2), waiting(3, BEN)],
        3,
        Standing(1, 1, 2, "1 ahead, the first is job2", None,
                 "unknown: job job2 ahead starts first"),
    ),
    "behind one that waits for tasks without a time limit": (
        [full(None), waiting(2), waiting(3, BEN)],
        3,
        Standing(1, 1, 2, "1 ahead, the first is job2", None,
                 "unknown: job job2 ahead waits for tasks without a time limit"),
    ),
    "an array ahead counts with its tasks": (
        [full(), waiting(2, count=7), waiting(3, BEN)],
        3,
        Standing(1, 7, 2, "1 ahead, the first is job2", None,
                 "unknown: job job2 ahead starts first"),
    ),
    "higher priority goes before": (
        [full(), waiting(2), waiting(3, BEN, priority=1)],
        3,
        Standing(0, 0, None, "next; waits for 2 CPUs to be free", 100.0,
                 "by the time limits of 1 running task"),
    ),
    "a gang": (
        [full(), Entry(2, EVE, Resources(2000, 0, 1), count=2, gang=True)],
        2,
        Standing(0, 0, None, "next; waits for 2 × (2 CPUs, 1 GPU) to be free", 100.0,
                 "by the time limits of the tasks on 1 runner"),
    ),
    "larger than what is there": (
        [Entry(2, EVE, Resources(5000))],
        2,
        Standing(0, 0, None, "no runners that are there have 5 CPUs", None,
                 "unknown: a larger runner, or more of them, have to come"),
    ),
    "as many as it allows": (
        [Entry(2, EVE, Resources(1000), count=5, max_parallel=2)],
        2,
        Standing(0, 0, None, "2 of its tasks run, as many as it allows at a time", None,
                 "unknown: one of its own tasks has to end first"),
    ),
    "others make room": (
        [Entry(1, ANN, Resources(4000), preemptible=True), waiting(2)],
        2,
        Standing(0, 0, None, "waits for tasks that make room for it to end", None,
                 "unknown: they may take their grace to end"),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("entries", "serial", "standing"), CASES.values(), ids=CASES.keys())
def test_a_standing_says_what_is_known(
    entries: list[Entry], serial: int, standing: Standing
) -> None:
    scheduler = scheduler_with(*entries)
    assert stand(scheduler, serial, 5.0, lambda each: f"job{each}") == standing


def test_a_limit_of_ones_own_is_named() -> None:
    scheduler = scheduler_with(full(), waiting(2))
    found = stand(scheduler, 2, 5.0, headrooms={"shop": Headroom(cpus_milli=1000)})
    assert found is not None
    assert (found.blocked_by, found.starts_by) == ("its limit of cpus is reached", None)


def test_what_runs_or_is_not_known_has_no_standing() -> None:
    scheduler = scheduler_with(full())
    assert stand(scheduler, 1, 5.0) is None
    assert stand(scheduler, 2, 5.0) is None
