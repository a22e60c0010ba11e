"""What runners say is taken of what is theirs, and as long as they are runners."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.server.api import Api, with_api
from tests.server.test_fleet import ADMIN, MACHINE, joined
from updraft import errors
from updraft.server.api.agent_session import AgentControl, AgentSessions, Lease
from updraft.server.services.beside import BesideRuns
from updraft.store.database import Work
from updraft.wire import frames
from updraft.wire.packing import pack

ENDED = {"status": 0, "at": 1, "stdout": 0, "stderr": 0}


class Link:
    """A connection to an agent that only notes what it is sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, int, dict[str, Any]]] = []
        self.failed = ""

    def send_message(self, kind: int, body: dict[str, Any], channel: int = 0) -> None:
        self.sent.append((kind, channel >> 2, body))

    def send_stream(
        self, kind: int, channel: int, offset: int, payload: bytes | memoryview = b""
    ) -> None:
        raise AssertionError("there is no stream")

    def fail(self, code: str, text: str) -> None:
        self.failed = text

    def abort(self) -> None:
        pass

    close = abort

    def attempts(self, kind: int) -> list[int]:
        """Return the attempts that frames of this kind were about."""
        return [serial for sent, serial, _ in self.sent if sent == kind]


class Agent:
    """One agent's session, whose connections are links."""

    def __init__(self, made: Api, beside: BesideRuns, name: str) -> None:
        self.control, self.data = Link(), Link()
        sessions = AgentSessions(made.execution, beside, Lease(30, 10))
        self.session: AgentControl = sessions.control(made.execution.live.runners[name].known)
        self.session.start(self.control, {})  # type: ignore[arg-type]
        self.session.join(self.data)  # type: ignore[arg-type]

    def report(self, *attempts: dict[str, Any]) -> None:
        body = {
            "capacity": MACHINE,
            "attempts": list(attempts),
            "keeper": "one",
            "keeper_pid": 1,
            "pid": 2,
            "release": "0",
            "keeper_release": "0",
        }
        self.session.frame(frames.REPORT, 0, 0, pack(body))

    def say(self, kind: int, serial: int, body: dict[str, Any]) -> None:
        self.session.frame(kind, serial << 2, 0, pack(body))


def with_runners(
    folder: Path, count: int, check: Callable[[Api, BesideRuns, list[str]], Any]
) -> None:
    """Run ``check`` with a pool ``gpu`` that so many machines have joined."""

    async def run(made: Api) -> None:
        await made.ask("POST", "/pools", ADMIN, json={"name": "gpu"})
        names = [await joined(made, "gpu") for _ in range(count)]
        beside = BesideRuns(made.execution)
        made.execution.runners.when_lost = beside.runner_lost
        await check(made, beside, names)

    with_api(folder, run)


async def state(made: Api, job: str) -> str:
    found: str = (await made.ask("GET", f"/jobs/{job}")).json()["state"]
    return found


def test_a_runner_is_not_heard_about_what_another_one_has(tmp_path: Path) -> None:
    async def check(made: Api, beside: BesideRuns, names: list[str]) -> None:
        first, second = (Agent(made, beside, name) for name in names)
        first.report()
        job = await made.submit("their-own-key", pool="gpu")
        (serial,) = first.control.attempts(frames.SPAWN)
        claimed = {"attempt": serial, "pid": 3, "at": 1, "end": ENDED}
        second.report(claimed)
        second.say(frames.EXITED, serial, ENDED)
        await made.execution.settle()
        assert await state(made, job) == "IN_QUEUE"
        live = made.execution.live.find(job)
        assert live is not None
        assert live.attempt is not None
        assert (live.attempt.runner, live.attempt.pid) == (names[0], None)
        assert made.execution.relay.comes_from(serial, first.data)
        assert (frames.FORGET, 0, {"attempts": [serial]}) in second.control.sent
        assert frames.FORGET not in {kind for kind, _, _ in first.control.sent}

    with_runners(tmp_path, 2, check)


def test_a_runner_that_was_removed_does_not_come_back_by_a_session_of_before(
    tmp_path: Path,
) -> None:
    async def check(made: Api, beside: BesideRuns, names: list[str]) -> None:
        late = Agent(made, beside, names[0])
        known = made.execution.live.runners[names[0]].known
        assert (await made.ask("DELETE", f"/runners/{names[0]}", ADMIN)).is_success
        late.report()
        assert late.control.failed == "this runner was removed"
        assert names[0] not in made.execution.live.runners
        # Nor by another machine's name.
        (again,) = [await joined(made, "gpu", name=names[0])]
        assert again == names[0]
        other = AgentControl(late.session._sessions, known)
        control, data = Link(), Link()
        other.start(control, {})  # type: ignore[arg-type]
        other.join(data)  # type: ignore[arg-type]
        late.session = other
        late.report()
        assert control.failed == "this runner was removed"
        assert made.execution.live.runners[names[0]].control is None

    with_runners(tmp_path, 1, check)


def test_a_grant_that_was_given_up_while_it_was_looked_up_is_not_sent(tmp_path: Path) -> None:
    async def check(made: Api, beside: BesideRuns, names: list[str]) -> None:
        agent = Agent(made, beside, names[0])
        agent.report()
        job = await made.submit("their-own-key", pool="gpu", retries=1)
        agent.session.closed()
        read = made.database.read
        looked, go_on = asyncio.Event(), asyncio.Event()

        async def slow(work: Work[Any], *, patient: bool = False) -> Any:
            found = await read(work, patient=patient)
            looked.set()
            await go_on.wait()
            return found

        made.database.read = slow  # type: ignore[method-assign]
        back = Agent(made, beside, names[0])
        back.report()  # the grant is looked up, to be sent again
        await looked.wait()
        made.database.read = read  # type: ignore[method-assign]
        runner = made.execution.live.runners[names[0]]
        made.execution.runners.lost(runner, "its runner was lost")
        live = made.execution.live.find(job)
        assert live is not None
        while live.attempt is not None:  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.001)
        last = Agent(made, beside, names[0])
        last.report()
        while not last.control.attempts(frames.SPAWN):  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.001)
        go_on.set()
        await made.execution.settle()
        assert back.control.attempts(frames.SPAWN) == []
        assert last.control.attempts(frames.SPAWN) == [2]
        assert live.attempts == 2

    with_runners(tmp_path, 1, check)


def test_an_end_that_could_not_be_stored_at_once_is_stored_later(tmp_path: Path) -> None:
    async def check(made: Api, beside: BesideRuns, names: list[str]) -> None:
        agent = Agent(made, beside, names[0])
        agent.report()
        job = await made.submit("their-own-key", pool="gpu")
        (serial,) = agent.control.attempts(frames.SPAWN)
        write = made.database.write
        failures = [errors.Unavailable("the database waits for a lock"), ValueError("a mistake")]

        async def failing(work: Work[Any], *, patient: bool = False) -> Any:
            if failures:
                raise failures.pop(0)
            return await write(work, patient=patient)

        made.database.write = failing  # type: ignore[method-assign]
        agent.say(frames.EXITED, serial, ENDED)
        while failures:  # noqa: ASYNC110 - the first is tried again, the second is given up
            await asyncio.sleep(0.01)
        assert await state(made, job) == "IN_QUEUE"
        agent.say(frames.EXITED, serial, ENDED)
        await made.execution.settle()
        assert await state(made, job) == "SUCCESS"
        assert made.execution.live.runners[names[0]].free.cpus_milli == MACHINE["cpus_milli"]

    with_runners(tmp_path, 1, check)


class Follower:
    """Who ran something beside a job."""

    def __init__(self) -> None:
        self.outcome = ""

    def granted(self, serial: int, folder: str) -> None:
        pass

    def said(self, kind: int, body: dict[str, Any]) -> None:
        pass

    def ended(self, outcome: Any, lengths: tuple[int, int]) -> None:
        self.outcome = outcome.message


@pytest.mark.parametrize("how", ["lost", "removed", "forgotten"])
def test_what_runs_beside_a_job_ends_for_its_client_when_its_runner_has_it_no_more(
    tmp_path: Path, how: str
) -> None:
    async def check(made: Api, beside: BesideRuns, names: list[str]) -> None:
        agent = Agent(made, beside, names[0])
        agent.report()
        job = await made.submit("their-own-key", pool="gpu")
        (serial,) = agent.control.attempts(frames.SPAWN)
        agent.say(frames.STARTED, serial, {"pid": 3, "at": 1})
        live = made.execution.live.find(job)
        assert live is not None
        follower = Follower()
        order = {"argv": [b"ls"], "set_environment": [], "stdin": False, "tty": None}
        beside.start(live, order, follower)
        runner = made.execution.live.runners[names[0]]
        if how == "forgotten":
            agent.session.closed()
            Agent(made, beside, names[0]).report({"attempt": serial, "pid": 3, "at": 1})
        elif how == "lost":
            made.execution.runners.lost(runner, "its runner was silent")
        else:
            path = f"/runners/{names[0]}?force=true"
            assert (await made.ask("DELETE", path, ADMIN)).is_success
        assert follower.outcome.endswith("and its processes were ended")
        await made.execution.settle()

    with_runners(tmp_path, 1, check)


def said_of(array: Any, serial: int, **changes: Any) -> dict[str, Any]:
    """What a keeper's report says of an array's task that its crew has."""
    task = array.tasks[serial]
    known = {"crew": task.crew.serial, "index": task.index, "number": task.number}
    return {"attempt": serial, **known, "waiting": True, **changes}


async def fed(made: Api, agent: Agent, job: str) -> Any:
    """Wait until a crew of an array was sent its tasks; return what the server has of it."""
    while not agent.control.attempts(frames.TASKS):  # noqa: ASYNC110 - no event
        await asyncio.sleep(0.001)
    live = made.execution.live.find(job)
    assert live is not None
    assert live.array is not None
    return live.array


def test_tasks_that_a_runner_still_has_are_not_taken_for_stale(tmp_path: Path) -> None:
    async def check(made: Api, beside: BesideRuns, names: list[str]) -> None:
        agent = Agent(made, beside, names[0])
        agent.report()
        job = await made.submit("their-own-key", pool="gpu", kind="array", tasks=2)
        array = await fed(made, agent, job)
        one, two = sorted(array.tasks)
        agent.session.closed()
        back = Agent(made, beside, names[0])
        running = said_of(array, one, waiting=False, pid=3, at=1)
        back.report(running, said_of(array, two))
        assert back.control.attempts(frames.KILL) == []
        assert array.tasks[one].pid == 3
        crew = array.tasks[one].crew.serial
        ends = [[one, {**ENDED, "pid": 3, "started": 1}], [two, ENDED]]
        back.say(frames.ENDS, crew, {"ends": ends})
        await made.execution.settle()
        assert await state(made, job) == "SUCCESS"

    with_runners(tmp_path, 1, check)


def test_a_runner_is_not_heard_about_another_ones_crew(tmp_path: Path) -> None:
    async def check(made: Api, beside: BesideRuns, names: list[str]) -> None:
        first, second = (Agent(made, beside, name) for name in names)
        first.report()
        job = await made.submit("their-own-key", pool="gpu", kind="array", tasks=1)
        array = await fed(made, first, job)
        (serial,) = array.tasks
        crew = array.tasks[serial].crew.serial
        second.report(said_of(array, serial, waiting=False, pid=3, at=1))
        second.say(frames.STARTS, crew, {"starts": [[serial, 3, 1]]})
        second.say(frames.ENDS, crew, {"ends": [[serial, ENDED]]})
        await made.execution.settle()
        assert await state(made, job) == "IN_QUEUE"
        assert array.tasks[serial].pid is None
        assert not made.execution.relay.comes_from(serial, second.data)
        assert second.control.attempts(frames.KILL) == [serial]

    with_runners(tmp_path, 2, check)
