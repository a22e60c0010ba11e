"""Jobs that run after others: when they start, when they never will, and why they wait."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.api import Api, with_api
from tests.server.test_api import error_of
from tests.stateful.simulated_runner import SimulatedRunner
from tests.stateful.world import World, scratch
from updraft.model.access import Principal
from updraft.model.dependencies import PAIRED, Edge, On
from updraft.model.job import ONE_TASK, Kind, Policy, Tasks
from updraft.store import jobs as queries

EXIT_1 = 256
GONE = 15


@pytest.fixture
def world() -> Iterator[World]:
    folder = scratch(Path.cwd())
    made = World(folder)
    try:
        made.add_runner(4)
        yield made
    finally:
        made.close()
        shutil.rmtree(folder)


def submit(world: World, *after: Edge, count: int | None = None, retries: int = 0) -> str:
    tasks = ONE_TASK if count is None else Tasks(Kind.ARRAY, count)
    job = world.submit("ada", tasks, Policy(retries=retries), after=after)
    assert job is not None
    world.settle()
    return job


def runner(world: World) -> SimulatedRunner:
    return world.runners["r0"]


def running(world: World) -> set[tuple[str, int]]:
    world.settle()
    return {process.key[:2] for process in runner(world).running()}


def end(world: World, job: str, index: int = 0, status: int = 0) -> None:
    for process in runner(world).running():
        if process.key[:2] == (job, index):
            world.end(runner(world), process, status)
    world.settle()


def ended(world: World, job: str) -> tuple[str, str]:
    look = "SELECT state, message FROM jobs WHERE id = ?"
    found: tuple[str, str] = world._looking.execute(look, (job,)).fetchone()
    return found


def reason(world: World, job: str) -> str:
    live = world.execution.live.find(job)
    assert live is not None
    return world.execution.live.reason(live)


@pytest.mark.parametrize(
    ("on", "status", "runs"),
    [
        (On.ANY, 0, True),
        (On.ANY, EXIT_1, True),
        (On.OK, 0, True),
        (On.OK, EXIT_1, False),
        (On.FAIL, 0, False),
        (On.FAIL, EXIT_1, True),
    ],
)
@pytest.mark.parametrize("late", [False, True], ids=["before the end", "after the end"])
def test_a_job_runs_after_the_end_that_it_asked_for_and_otherwise_ends(
    world: World, on: On, status: int, runs: bool, late: bool
) -> None:
    first = submit(world)
    second = "" if late else submit(world, Edge(first, on))
    if not late:
        assert reason(world, second) == f"waiting for job {first}"
        assert running(world) == {(first, 0)}
    end(world, first, status=status)
    second = submit(world, Edge(first, on)) if late else second
    if runs:
        assert running(world) == {(second, 0)}
        return
    said = "is not ok, and this one was to run after it was ok"
    if on is On.FAIL:
        said = "is ok, and this one was to run after it was not"
    assert ended(world, second) == ("CANCELLED", f"job {first} {said}")


def test_what_can_never_run_takes_those_along_that_were_to_run_after_it_was_ok(
    world: World,
) -> None:
    first = submit(world)
    second = submit(world, Edge(first, On.OK))
    third = submit(world, Edge(second, On.OK))
    mending, always = submit(world, Edge(third, On.FAIL)), submit(world, Edge(third))
    end(world, first, status=EXIT_1)
    assert [ended(world, job)[0] for job in (second, third)] == ["CANCELLED", "CANCELLED"]
    assert ended(world, third)[1].startswith(f"job {second} is not ok")
    assert running(world) == {(mending, 0), (always, 0)}


def test_a_job_waits_for_all_that_it_is_to_run_after_and_counts_them(world: World) -> None:
    first, second, third = submit(world), submit(world), submit(world)
    last = submit(world, Edge(first), Edge(second, On.OK), Edge(third))
    assert reason(world, last) == f"waiting for 3 jobs, first {first}"
    end(world, first)
    assert reason(world, last) == f"waiting for 2 jobs, first {second}"
    end(world, third)
    end(world, second)
    assert running(world) == {(last, 0)}


def test_a_job_that_waits_for_another_takes_no_place_in_the_queue(world: World) -> None:
    many = submit(world, count=5)  # four run, one waits
    waiting = submit(world, Edge(many))
    later = submit(world)
    world.settle()
    assert later not in reason(world, waiting)
    place = world.execution.live.queue("lab")
    assert len(place) == 2, "the array's rest, and the job behind it"


def test_a_job_that_is_tried_again_has_not_ended(world: World) -> None:
    first = submit(world, retries=1)
    second = submit(world, Edge(first, On.OK))
    world.lose(runner(world))
    world.connect(runner(world))
    assert (second, 0) not in running(world)
    end(world, first)
    assert (second, 0) in running(world)


def test_one_task_of_an_array_can_be_waited_for(world: World) -> None:
    array = submit(world, count=3)
    after, never = submit(world, Edge(array, On.OK, 1)), submit(world, Edge(array, On.OK, 2))
    assert reason(world, after) == f"waiting for task {array}/1"
    end(world, array, 1)
    assert (after, 0) in running(world)
    end(world, array, 2, EXIT_1)
    assert ended(world, never)[0] == "CANCELLED"
    assert ended(world, array)[0] == "RUNNING"
    late = submit(world, Edge(array, On.OK, 1))
    assert (late, 0) in running(world), "task 1 ended before it was submitted"


def test_pairs_go_on_task_by_task(world: World) -> None:
    first = submit(world, count=3)
    second = submit(world, Edge(first, On.OK, PAIRED), count=3)
    assert reason(world, second) == f"waiting for tasks of job {first}"
    end(world, first, 1)
    assert running(world) == {(first, 0), (first, 2), (second, 1)}
    end(world, first, 0, EXIT_1)
    end(world, first, 2)
    assert running(world) == {(second, 1), (second, 2)}
    end(world, second, 1)
    end(world, second, 2)
    assert ended(world, second) == ("CANCELLED", "2 of 3 tasks ok")
    look = "SELECT a.message FROM attempts a JOIN jobs j ON j.serial = job_serial WHERE id = ?"
    said = world._looking.execute(f"{look} AND task_index = 0", (second,)).fetchone()[0]
    assert said == f"its task of job {first} is not ok, and this one was to run after it was ok"


def test_pairs_take_up_where_the_other_array_is(world: World) -> None:
    first = submit(world, count=4)
    end(world, first, 0)
    end(world, first, 1, EXIT_1)
    second = submit(world, Edge(first, On.OK, PAIRED), count=4)
    assert running(world) == {(first, 2), (first, 3), (second, 0)}


def test_an_array_none_of_whose_tasks_can_run_ends_at_once(world: World) -> None:
    first = submit(world, Edge(submit(world)), count=10_000)
    second = submit(world, Edge(first, On.OK, PAIRED), count=10_000)
    world.cancel(first)
    world.settle()
    assert ended(world, second)[0] == "CANCELLED"
    assert ended(world, second)[1].startswith(f"job {first} is not ok")


def test_a_waiting_job_is_cancelled_as_any_other(world: World) -> None:
    first = submit(world)
    second = submit(world, Edge(first))
    world.cancel(second)
    world.settle()
    assert ended(world, second) == ("CANCELLED", "cancelled")
    end(world, first)
    assert running(world) == set()


def test_edges_survive_the_server_and_so_does_what_was_met_of_them(world: World) -> None:
    first, second = submit(world), submit(world)
    third = submit(world, Edge(first, On.OK), Edge(second, On.OK))
    array = submit(world, count=2)
    pairs = submit(world, Edge(array, On.OK, PAIRED), count=2)
    end(world, first)
    end(world, array, 1)
    gone = world.execution.live.find(first)
    assert gone is None
    serial = world._looking.execute("SELECT serial FROM jobs WHERE id = ?", (first,)).fetchone()[0]

    async def forget() -> None:  # as retention does with what ended long ago
        await world.database.write(lambda c: queries.delete_jobs(c, [serial]))

    world.run(forget())
    world.restart()
    world.connect(runner(world))
    assert reason(world, third) == f"waiting for job {second}"
    assert (pairs, 1) in running(world)
    assert (pairs, 0) not in running(world)
    end(world, second)
    end(world, array, 0)
    assert {(third, 0), (pairs, 0)} <= running(world)


def test_an_end_that_nobody_was_told_of_is_found_after_a_restart(world: World) -> None:
    first = submit(world)
    second = submit(world, Edge(first, On.OK))
    world.execution.dependencies.job_ended = lambda *_, **__: None  # type: ignore[method-assign]
    end(world, first, status=EXIT_1)
    assert ended(world, second)[0] == "IN_QUEUE"
    world.restart()
    world.settle()
    assert ended(world, second)[0] == "CANCELLED"


# -- over the API


@pytest.mark.usefixtures("either_database")
def test_the_api_takes_edges_and_shows_what_is_unmet(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        first = await made.submit("key-of-first")
        array = await made.submit("key-of-array", kind="array", tasks=3)
        after = [{"job": first[:6], "on": "ok"}, {"job": array, "task": 2}]
        second = await made.submit("key-of-second", after=after)
        shown = (await made.ask("GET", f"/jobs/{second}")).json()
        assert shown["after"] == [
            {"job": first, "task": None, "on": "ok", "waits": True},
            {"job": array, "task": 2, "on": "any", "waits": True},
        ]
        assert shown["reason"] == f"waiting for 2 jobs, first {first}"
        await made.ask("POST", f"/jobs/{first}/cancel")
        ended = (await made.ask("GET", f"/jobs/{second}/wait?seconds=20")).json()
        assert ended["state"] == "CANCELLED"
        assert not any(each["waits"] for each in ended["after"])

    with_api(tmp_path, check)


@pytest.mark.usefixtures("either_database")
@pytest.mark.parametrize(
    ("after", "fields", "says"),
    [
        ({"job": "nosuchjob1"}, {}, "there is no job 'nosuchjob1' to run after"),
        ({"job": "ARRAY", "task": 3}, {}, "has no task 3 to run after"),
        ({"job": "ARRAY", "task": "*"}, {}, "which need the same count"),
        ({"job": "ARRAY", "task": "*"}, {"kind": "array", "tasks": 4}, "which need the same count"),
        ({"job": "THEIRS"}, {}, "there is no job"),
        ({"job": "ARRAY", "on": "never"}, {}, "on"),
    ],
)
def test_an_edge_that_cannot_be_is_refused_in_one_line(
    tmp_path: Path, after: dict[str, object], fields: dict[str, object], says: str
) -> None:
    async def check(made: Api) -> None:
        array = await made.submit("key-of-array", kind="array", tasks=3)
        theirs = await made.submit("key-of-theirs", Principal("uid:4000001", "other"))
        before = await made.ids()
        names = {"ARRAY": array, "THEIRS": theirs}
        edge = {**after, "job": names.get(str(after["job"]), after["job"])}
        body = {"key": "key-of-last", "argv": ["true"], "directory": "/", "after": [edge], **fields}
        status, _, message = error_of(await made.ask("POST", "/jobs", json=body))
        assert status in (400, 422)
        assert says in message
        assert await made.ids() == before

    with_api(tmp_path, check)
