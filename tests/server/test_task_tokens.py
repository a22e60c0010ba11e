"""A task's token is its owner's, in its project, for its own jobs, while its attempt lasts."""

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.api import Api
from tests.server.tcp import Peer, Tcp, with_tcp
from tests.server.test_fleet import joined
from tests.server.test_runners_word import ENDED, Agent
from updraft import errors
from updraft.model.access import Principal, Role
from updraft.sdk.submission import submission
from updraft.server.services.accounts import NewUser
from updraft.server.services.beside import BesideRuns
from updraft.server.services.sign_in import NewToken
from updraft.wire import frames

ADMIN = Principal("uid:4000000", server_admin=True)
ANNA = Principal("anna", project="red", role=Role.MEMBER)
Check = Callable[["World"], Awaitable[None]]


class World:
    """Projects red and blue, anna in red, ben in both, and a runner that starts what it is sent."""

    def __init__(self, tcp: Tcp, agent: Agent) -> None:
        self.tcp = tcp
        self.made: Api = tcp.made
        self.agent = agent

    async def run(self, who: Principal = ANNA, **fields: Any) -> tuple[str, int, str]:
        """Have a job run; return its id, its attempt's serial, and its token."""
        key = f"key-{len(self.agent.control.sent)}-{who.owner}"
        job = await self.made.submit(key, who, pool="gpu", **fields)
        return (job, *self.started(job))

    def started(self, job: str) -> tuple[int, str]:
        """Say that the newest attempt of a job has started; return its serial and its token."""
        serial, spec = [
            (serial, body)
            for kind, serial, body in self.agent.control.sent
            if kind == frames.SPAWN and body["job"] == job
        ][-1]
        self.agent.say(frames.STARTED, serial, {"pid": 7, "at": 1})
        return serial, spec["token"]

    async def end(self, serial: int, **end: Any) -> None:
        """Say that an attempt has ended."""
        self.agent.say(frames.EXITED, serial, {**ENDED, **end})
        await self.made.execution.settle()

    async def ask(self, token: str, method: str, path: str, **options: Any) -> httpx.Response:
        return await self.made.send(method, path, token, **options)

    async def nested(self, token: str, **fields: Any) -> tuple[int, dict[str, Any]]:
        """Submit an attached job by frames; return the last answer."""
        peer = await self.tcp.hello(token)
        return await submitted(peer, **fields)

    def parent_of(self, job: str) -> str | None:
        live = self.made.execution.live.find(job)
        assert live is not None
        return live.parent


async def submitted(peer: Peer, **fields: Any) -> tuple[int, dict[str, Any]]:
    peer.send(frames.SUBMIT, {**submission([b"true"], attached=True), **fields})
    told = await peer.answers(frames.ACCEPTED, frames.ERROR, frames.ATTEMPT)
    return next(each for each in told if each[0] in (frames.ACCEPTED, frames.ERROR))


def with_world(folder: Path, check: Check) -> None:
    async def run(tcp: Tcp) -> None:
        made = tcp.made
        for project in ("red", "blue"):
            await made.access.projects.create(ADMIN, project)
        for name, projects in (("anna", ["red"]), ("ben", ["red", "blue"])):
            await made.access.accounts.create(ADMIN, NewUser(name))
            for project in projects:
                await made.access.projects.set_member(ADMIN, project, name, Role.MEMBER)
        await made.ask("POST", "/pools", ADMIN, json={"name": "gpu"})
        beside = BesideRuns(made.execution)
        agent = Agent(made, beside, await joined(made, "gpu"))
        agent.report()
        await check(World(tcp, agent))

    with_tcp(folder, run)


def test_a_token_is_its_owner_in_its_project_and_no_admin(tmp_path: Path) -> None:
    async def check(world: World) -> None:
        await world.made.access.projects.set_member(ADMIN, "red", "anna", Role.ADMIN)
        job, _, token = await world.run()
        me = (await world.ask(token, "GET", "/me")).json()
        assert (me["name"], me["project"], me["role"]) == ("anna", "red", "member")
        assert (me["scope"], me["server_admin"]) == ("run", False)
        assert (await world.ask(token, "GET", f"/jobs/{job}")).json()["id"] == job

    with_world(tmp_path, check)


def test_what_a_task_submits_is_its_child_whatever_it_says(tmp_path: Path) -> None:
    async def check(world: World) -> None:
        job, _, token = await world.run()
        other, _, _ = await world.run()
        kind, told = await world.nested(token, parent=other, cpus_milli=0)
        assert kind == frames.ACCEPTED, told
        assert world.parent_of(told["job"]) == job
        body = {"key": "over-http", "argv": ["true"], "directory": "/"}
        made = (await world.ask(token, "POST", "/jobs", json=body)).json()
        assert (made["parent"], made["owner"], made["project"]) == (job, "anna", "red")
        assert made["pool"] == "gpu"  # its parent's, where it names none
        again = await world.ask(token, "POST", f"/jobs/{other}/rerun", json={"key": "once-more"})
        assert again.json()["parent"] == job
        shown = (await world.made.ask("GET", f"/jobs/{job}", ANNA)).json()
        assert shown["children"] == 3
        assert shown["live_children"] == [told["job"], made["id"], again.json()["id"]]
        listed = await world.made.ids(f"parent={job}", ANNA)
        assert sorted(listed) == sorted(shown["live_children"])
        assert await world.made.ids(f"parent={other}&state=RUNNING", ANNA) == []
        plain = {"key": "no-task-1", "argv": ["true"], "directory": "/", "pool": "gpu"}
        assert (await world.made.ask("POST", "/jobs", ANNA, json=plain)).json()["parent"] is None

    with_world(tmp_path, check)


def test_a_task_changes_its_descendants_and_no_other_job(tmp_path: Path) -> None:
    async def check(world: World) -> None:
        job, _, token = await world.run()
        others = [(await world.run())[0], (await world.run(Principal("ben", "red")))[0], job]
        child = (await world.nested(token))[1]["job"]
        grandchild = (await world.nested(world.started(child)[1], cpus_milli=0))[1]["job"]
        for other in others:
            for action, body in (("cancel", None), ("extend", {"seconds": 1})):
                answer = await world.ask(token, "POST", f"/jobs/{other}/{action}", json=body)
                assert answer.status_code == 403, (action, answer.text)
            for role, kind in (("client", frames.ATTACH), ("exec", frames.EXEC)):
                peer = await world.tcp.hello(token, role)
                where = {"job": other, "attempt": 1, "stdout": 0, "stderr": 0}
                peer.send(kind, {**where, "argv": [b"id"]})
                told = (await peer.answers(frames.ERROR))[-1][1]
                assert told["code"] == "not_allowed", told
        of_child = world.started(child)[1]
        assert (await world.ask(of_child, "POST", f"/jobs/{child}/cancel")).status_code == 403
        assert (await world.ask(token, "POST", f"/jobs/{grandchild}/cancel")).status_code == 200
        assert (await world.ask(token, "POST", f"/jobs/{child}/cancel")).status_code == 200

    with_world(tmp_path, check)


ADMINISTERING = [
    ("GET", "/users", None), ("POST", "/users", {"name": "new"}), ("GET", "/status", None),
    ("POST", "/tokens", {"name": "new"}), ("POST", "/stop", {"mode": "cancel"}),
    ("POST", "/projects", {"name": "new"}), ("POST", "/pools", {"name": "new"}),
    ("POST", "/runner-tokens", {"pool": "gpu"}), ("GET", "/audit", None), ("GET", "/runners", None),
    ("PUT", "/projects/red/members/ben", {"role": "admin"}), ("PUT", "/projects/red/limits", {}),
    ("POST", "/projects/red/archive", None), ("GET", "/metrics", None),
]  # fmt: skip


def test_no_task_administers_anything_though_its_owner_may(tmp_path: Path) -> None:
    async def check(world: World) -> None:
        made = world.made
        await made.access.accounts.create(ADMIN, NewUser("root", server_admin=True))
        who = Principal("root", project="red", server_admin=True)
        _, _, token = await world.run(who)
        _, _, of_socket = await world.run(Principal("uid:4000000", "red", server_admin=True))
        for each in (token, of_socket):
            assert (await world.ask(each, "GET", "/me")).json()["server_admin"] is False
            for method, path, body in ADMINISTERING:
                answer = await world.ask(each, method, path, json=body)
                assert answer.status_code in (403, 404), (method, path, answer.text)
            assert (await world.ask(each, "POST", "/sign-out")).status_code == 404
            assert (await world.ask(each, "GET", "/me")).status_code == 200

    with_world(tmp_path, check)


def test_a_token_is_of_one_project(tmp_path: Path) -> None:
    async def check(world: World) -> None:
        job, _, token = await world.run(Principal("ben", "red"))
        other, _, blue = await world.run(Principal("ben", "blue"))
        assert (await world.ask(token, "GET", "/jobs", project="blue")).status_code == 404
        assert (await world.ask(token, "GET", f"/jobs/{other}")).status_code == 404
        assert (await world.ask(blue, "GET", f"/jobs/{job}")).status_code == 404
        assert (await world.ask(token, "POST", f"/jobs/{other}/cancel")).status_code == 404
        peer = await world.tcp.hello(token, project="blue")
        assert (await peer.answers(frames.ERROR))[-1][1]["code"] == "not_found"

    with_world(tmp_path, check)


async def is_refused(world: World, token: str) -> None:
    """Not by HTTP, nor by frames, nor on the owner's socket; always in the same words."""
    answer = await world.ask(token, "GET", "/jobs")
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "task_ended")
    assert answer.json()["error"]["message"] == errors.TaskEnded().message
    hello = {"role": "client", "wire": frames.WIRE_VERSION, "release": "0", "token": token}
    for peer in (
        await world.tcp.hello(token),
        await world.tcp.say_as_owner(frames.message(frames.HELLO, hello)),
    ):
        peer.send(frames.SUBMIT, submission([b"true"], attached=True))
        ((kind, told),) = await peer.answers()
        assert (kind, told["code"]) == (frames.ERROR, "task_ended")
    headers = {"Authorization": f"Bearer {token}"}
    assert (await world.made.ask("GET", "/me", ADMIN, headers=headers)).status_code == 401


def changed(text: str, at: int) -> str:
    return text[:at] + ("0" if text[at] != "0" else "1") + text[at + 1 :]


def test_a_forged_token_is_refused_as_one_of_an_ended_job_is(tmp_path: Path) -> None:
    async def check(world: World) -> None:
        job, serial, token = await world.run()
        other, other_serial, _ = await world.run()
        proof = token.rpartition("_")[2]
        for forged in (
            changed(token, -1),
            changed(token, len(token) - len(proof)),
            token[:-1],
            f"{token}0",
            f"updraft_task_{job}-{serial}_",
            f"updraft_task_{job}-{serial}",
            f"updraft_task_{job}-0{serial}_{proof}",
            f"updraft_task_{job}-{other_serial}_{proof}",
            f"updraft_task_{other}-{other_serial}_{proof}",
            f"updraft_task_zzzzzzzzzz-1_{proof}",
            f"updraft_task_-_{proof}",
            "updraft_task_",
        ):
            await is_refused(world, forged)

    with_world(tmp_path, check)


def test_a_token_dies_with_its_job(tmp_path: Path) -> None:
    async def check(world: World) -> None:
        _, serial, token = await world.run()
        peer = await world.tcp.hello(token)
        kind, told = await submitted(peer, cpus_milli=0)
        assert kind == frames.ACCEPTED, told
        await world.end(serial)
        # What it had opened is cut off too.
        assert (await peer.answers(frames.ERROR))[-1][1]["code"] == "task_ended"
        await is_refused(world, token)

    with_world(tmp_path, check)


def test_an_attempt_that_was_superseded_has_no_say(tmp_path: Path) -> None:
    async def check(world: World) -> None:
        job, serial, token = await world.run(retries=1)
        body = {"key": "of-the-first", "argv": ["true"], "directory": "/"}
        child = (await world.ask(token, "POST", "/jobs", json=body)).json()["id"]
        await world.end(serial, lost="its machine burnt")
        _, newer = world.started(job)
        assert newer != token
        await is_refused(world, token)
        assert (await world.ask(newer, "GET", "/me")).status_code == 200
        # It will submit what it needs itself.
        live = world.made.execution.live.find(child)
        assert live is None or live.wanted == "cancel"

    with_world(tmp_path, check)


@pytest.mark.parametrize("how", ["disabled", "removed", "out of the project", "a viewer"])
def test_a_task_may_do_no_more_than_its_owner_may_by_now(tmp_path: Path, how: str) -> None:
    async def check(world: World) -> None:
        access = world.made.access
        _, _, token = await world.run()
        peer = await world.tcp.hello(token)
        assert (await submitted(peer, cpus_milli=0))[0] == frames.ACCEPTED
        if how == "disabled":
            await access.accounts.set_disabled(ADMIN, "anna", True)
        elif how == "removed":
            await access.accounts.remove(ADMIN, "anna")
        elif how == "out of the project":
            await access.projects.remove_member(ADMIN, "red", "anna")
        else:
            await access.projects.set_member(ADMIN, "red", "anna", Role.VIEWER)
        assert (await peer.answers(frames.ERROR))[-1][0] == frames.ERROR
        body = {"key": "afterwards", "argv": ["true"], "directory": "/"}
        answer = await world.ask(token, "POST", "/jobs", json=body)
        assert answer.status_code in (401, 403, 404)

    with_world(tmp_path, check)


def test_on_the_owners_socket_a_token_says_whose_child_it_is(tmp_path: Path) -> None:
    async def check(world: World) -> None:
        owner = Principal("uid:4000000", server_admin=True)
        hello = {"role": "client", "wire": frames.WIRE_VERSION, "release": "0"}
        uid = Principal(f"uid:{os.geteuid()}", server_admin=True)
        job, _, token = await world.run(uid)
        peer = await world.tcp.say_as_owner(frames.message(frames.HELLO, {**hello, "token": token}))
        kind, told = await submitted(peer, cpus_milli=0)
        assert kind == frames.ACCEPTED, told
        assert world.parent_of(told["job"]) == job
        # Another owner's task that runs as the server's user is that owner, and no more.
        annas, _, hers = await world.run()
        headers = {"Authorization": f"Bearer {hers}"}
        me = (await world.made.ask("GET", "/me", owner, headers=headers)).json()
        assert (me["name"], me["server_admin"]) == ("anna", False)
        # Other tokens mean nothing there.
        _, user = await world.made.access.sign_in.create_token(ADMIN, NewToken("x", user="ben"))
        peer = await world.tcp.say_as_owner(frames.message(frames.HELLO, {**hello, "token": user}))
        kind, told = await submitted(peer, cpus_milli=0)
        live = world.made.execution.live.find(told["job"])
        assert live is not None
        assert (live.owner, live.parent) == (uid.owner, None)
        assert annas

    with_world(tmp_path, check)


def test_a_job_that_is_being_cancelled_submits_no_more(tmp_path: Path) -> None:
    async def check(world: World) -> None:
        job, _, token = await world.run()
        child = (await world.nested(token, cpus_milli=0))[1]["job"]
        assert (await world.made.ask("POST", f"/jobs/{job}/cancel", ANNA)).status_code == 200
        kind, told = await world.nested(token)
        assert (kind, told["code"]) == (frames.ERROR, "conflict")
        await world.made.execution.settle()
        live = world.made.execution.live.find(child)
        assert live is not None
        assert live.wanted == "cancel"
        assert live.attempt is not None
        assert live.attempt.serial in world.agent.control.attempts(frames.KILL)

    with_world(tmp_path, check)


def test_jobs_nest_so_deep_and_no_deeper(tmp_path: Path) -> None:
    async def check(world: World) -> None:
        job, _, token = await world.run()
        live = world.made.execution.live.find(job)
        assert live is not None
        live.lineage = tuple(f"ancestor{n}" for n in range(62))
        kind, told = await world.nested(token, cpus_milli=0)
        assert kind == frames.ACCEPTED
        kind, told = await world.nested(world.started(told["job"])[1])
        assert (kind, told["code"]) == (frames.ERROR, "bad_request")
        assert "64 deep" in told["message"]

    with_world(tmp_path, check)


def test_no_token_is_shown_and_the_submitters_own_is_not_the_tasks(tmp_path: Path) -> None:
    async def check(world: World) -> None:
        environment = {
            "UPDRAFT_TOKEN": "updraft_user_secret", "UPDRAFT_URL": "https://else.example",
            "UPDRAFT_PROJECT": "x", "UPDRAFT_PROFILE": "y", "UPDRAFT_HOME": "/h", "A": "b",
        }  # fmt: skip
        job, _, token = await world.run(environment=environment)
        (spec,) = [body for kind, _, body in world.agent.control.sent if kind == frames.SPAWN]
        names = {entry.partition(b"=")[0] for entry in spec["environment"].split(b"\0")}
        assert names == {b"UPDRAFT_HOME", b"A", b"UPDRAFT_JOB_ID", b"UPDRAFT_ATTEMPT"}
        for path in (f"/jobs/{job}", "/jobs", f"/jobs/{job}/events"):
            assert token.rpartition("_")[2] not in (await world.made.ask("GET", path, ANNA)).text

    with_world(tmp_path, check)


def test_what_e_sets_is_meant(tmp_path: Path) -> None:
    async def check(world: World) -> None:
        chosen = {"UPDRAFT_TOKEN": "updraft_user_mine", "UPDRAFT_URL": "https://else.example"}
        await world.run(set_environment=chosen)
        (spec,) = [body for kind, _, body in world.agent.control.sent if kind == frames.SPAWN]
        assert b"UPDRAFT_TOKEN=updraft_user_mine" in spec["environment"].split(b"\0")
        assert spec["token"] == ""

    with_world(tmp_path, check)
