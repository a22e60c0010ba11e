"""In any graph of jobs, with any outcomes, each job runs just when its edges say so."""

from __future__ import annotations

import shutil
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.stateful.world import World, scratch
from updraft.model.dependencies import Edge, On
from updraft.model.job import ONE_TASK, Policy

_MOST = 8

EDGES = st.lists(st.tuples(st.integers(0, _MOST), st.sampled_from(On)), max_size=3)
NODES = st.lists(st.tuples(EDGES, st.sampled_from([0, 0, 256])), min_size=1, max_size=_MOST)


@settings(max_examples=25, deadline=None)
@given(nodes=NODES, order=st.randoms(use_true_random=False), together=st.booleans())
def test_each_job_runs_just_when_its_edges_say_so(
    nodes: list[tuple[list[tuple[int, On]], int]], order: object, together: bool
) -> None:
    folder = scratch(Path.cwd())
    world = World(folder)
    try:
        runner = world.add_runner(_MOST)
        jobs: list[str] = []
        status: dict[str, int] = {}
        runs: list[bool] = []
        well: list[bool] = []
        for edges, code in nodes:
            named = [(which % len(jobs), on) for which, on in edges] if jobs else []
            after = tuple(Edge(jobs[which], on) for which, on in named)
            job = world.submit("ada", ONE_TASK, Policy(), after=after)
            assert job is not None
            jobs.append(job)
            status[job] = code
            runs.append(all(on is On.ANY or well[each] is (on is On.OK) for each, on in named))
            well.append(runs[-1] and code == 0)
            if not together:
                _end_one(world, status, order)
        while _end_one(world, status, order):
            pass
        look = "SELECT count(*) FROM attempts JOIN jobs j ON j.serial = job_serial WHERE j.id = ?"
        ran = [world._looking.execute(look, (job,)).fetchone()[0] == 1 for job in jobs]
        assert ran == runs
        assert len(runner.processes) == 0
        states = dict(world._looking.execute("SELECT id, state FROM jobs").fetchall())
        assert [states[job] for job in jobs] == [
            "SUCCESS" if each else "CANCELLED" for each in runs
        ]
    finally:
        world.close()
        shutil.rmtree(folder)


def _end_one(world: World, status: dict[str, int], order: object) -> bool:
    world.settle()
    running = [(r, process) for r in world.runners.values() for process in r.running()]
    if not running:
        return False
    runner, process = order.choice(running)  # type: ignore[attr-defined]
    world.end(runner, process, status[process.key[0]])
    return True
