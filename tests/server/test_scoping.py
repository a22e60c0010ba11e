"""P9: no route answers without credentials, tells of another project, or lets viewers change.

Every route that the API document names is tried by everybody who must not get through.  A route
without a rule here fails, so that whoever adds one decides.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.server.api import ME, Api, with_api
from updraft import errors
from updraft.model.access import Principal, Role, Scope
from updraft.server.api.guard import PUBLIC
from updraft.server.services.accounts import NewUser
from updraft.server.services.sign_in import NewToken
from updraft.store import access as queries

ADMIN = Principal("uid:4000000", server_admin=True)

BODIES: dict[str, dict[str, Any]] = {
    "POST /jobs": {"key": "their-own-key", "argv": ["true"], "directory": "/"},
    "POST /jobs/{job}/extend": {"seconds": 60},
    "POST /jobs/{job}/rerun": {"key": "another-key"},
    "POST /stop": {"mode": "cancel"},
    "POST /runner-tokens": {"pool": "local"},
    "POST /pools": {"name": "new"},
    "PUT /pools/{pool}": {"cpus": 1},
    "POST /users": {"name": "new", "password": "long enough for all"},
    "PUT /users/{user}/password": {"password": "long enough for all"},
    "POST /tokens": {"name": "new"},
    "POST /projects": {"name": "new"},
    "PUT /projects/{project}/limits": {"gpus": 1},
    "PUT /projects/{project}/members/{user}": {"role": "admin"},
    "PUT /projects/{project}/members/{user}/limits": {"gpus": 1},
}
SERVER_ADMIN = {
    "GET /status", "POST /stop", "GET /users", "POST /users", "GET /users/{user}",
    "DELETE /users/{user}", "POST /users/{user}/disable", "POST /users/{user}/enable",
    "PUT /users/{user}/password", "POST /projects", "PUT /projects/{project}/limits", "GET /audit",
    "GET /runners", "GET /runners/{runner}", "POST /runners/{runner}/drain",
    "POST /runners/{runner}/upgrade", "DELETE /runners/{runner}", "POST /runner-tokens",
    "POST /pools", "GET /runner-tokens", "DELETE /runner-tokens/{token}", "PUT /pools/{pool}",
    "POST /pools/{pool}/drain", "DELETE /pools/{pool}", "GET /metrics",
}  # fmt: skip
"""What is a server admin's alone; `{user}` is somebody else."""
OWN = {
    "GET /me", "GET /jobs", "GET /tokens", "POST /tokens", "GET /projects", "POST /sign-out",
    "GET /pools", "GET /pools/{pool}",
}  # fmt: skip
"""What everybody may ask, each about themselves."""
LOOKING = {
    "GET /jobs/{job}", "GET /jobs/{job}/wait", "GET /jobs/{job}/events", "GET /jobs/{job}/logs",
    "GET /jobs/{job}/logs/{stream}", "GET /jobs/{job}/tasks", "GET /jobs/{job}/tasks/{index}",
    "GET /projects/{project}", "GET /projects/{project}/members",
}  # fmt: skip
"""What a viewer may do beside that."""


@dataclass
class World:
    """Two projects: red with alice, its admin rob and viewer vera, and blue with mallory."""

    made: Api
    job: str
    token: str
    tokens: dict[str, str]

    def routes(self) -> list[tuple[str, str, str]]:
        """Return the name, method and filled path of every route that is not public."""
        found: list[tuple[str, str, str]] = []
        for path, operations in self.made.document["paths"].items():
            short = path.removeprefix("/api/v1")
            full = short.format(
                job=self.job,
                stream="stdout",
                user="alice",
                project="red",
                token=self.token,
                runner="local",
                pool="local",
                wheel="a-1.0-py3-none-any.whl",
                index=0,
            )
            if short.endswith("/wait"):
                full += "?seconds=0"  # the job does not end
            found += [
                (f"{method} {short}", method, full)
                for method in map(str.upper, operations)
                if (method, path) not in PUBLIC
            ]
        return found

    async def state(self) -> Any:
        """Return all that nobody here may have changed."""
        shown = (await self.made.ask("GET", f"/jobs/{self.job}", RED)).json()
        members = (await self.made.ask("GET", "/projects/red/members", ADMIN)).json()
        project = (await self.made.ask("GET", "/projects/red", ADMIN)).json()
        users = (await self.made.ask("GET", "/users", ADMIN)).json()
        tokens = (await self.made.ask("GET", "/tokens?user=alice", ADMIN)).json()
        for token in tokens["tokens"]:
            del token["last_used"]
        return {**shown, "reason": ""}, members, project, users, tokens


RED = Principal("alice", project="red")


async def build(made: Api) -> World:
    access = made.access
    for project in ("red", "blue"):
        await access.projects.create(ADMIN, project)
    tokens = {}
    for name, project, role in (
        ("alice", "red", Role.MEMBER),
        ("rob", "red", Role.ADMIN),
        ("vera", "red", Role.VIEWER),
        ("mallory", "blue", Role.ADMIN),
    ):
        await access.accounts.create(ADMIN, NewUser(name))
        await access.projects.set_member(ADMIN, project, name, role)
        tokens[name] = await token_of(made, name)
    job = await made.submit("my-own-key", RED, name="red-secret", time_limit_seconds=60)
    row, _ = await access.sign_in.create_token(ADMIN, NewToken("victim", user="alice"))
    return World(made, job, row["id"], tokens)


async def token_of(made: Api, user: str, scope: Scope = Scope.ADMIN, **more: Any) -> str:
    new = NewToken("test", scope, user=user, **more)
    return (await made.access.sign_in.create_token(ADMIN, new))[1]


async def expire(made: Api, token: str) -> None:
    """Let a token's time be over."""
    from updraft.store.tables import credentials

    identity = token.split("_")[2]
    past = credentials.update().where(credentials.c.id == identity)
    await made.database.write(lambda c: c.execute(past.values(expires_ns=time.time_ns())).rowcount)
    made.access.sign_in.forget()


@pytest.mark.parametrize("kind", ["none", "nonsense", "expired", "revoked", "disabled", "browser"])
def test_no_route_answers_without_good_credentials_and_all_refuse_alike(
    tmp_path: Path, kind: str
) -> None:
    async def check(made: Api) -> None:
        world = await build(made)
        token = {"none": "", "nonsense": "updraft_user_0_0"}.get(kind) or world.tokens["alice"]
        if kind == "none":
            token = ""
        elif kind == "expired":
            await expire(made, token)
        elif kind == "revoked":
            await made.access.sign_in.revoke(ADMIN, token.split("_")[2])
        elif kind == "disabled":
            await made.access.accounts.set_disabled(ADMIN, "alice", True)
        elif kind == "browser":
            user = await made.database.read(lambda c: queries.find_user(c, "alice"))
            assert user is not None
            session = await made.access.sign_in.begin_session(user, peer="", kind="browser")
            token = session.text
        before = await world.state()
        said = set()
        for name, method, path in [
            *world.routes(),
            ("no route", "GET", "/no/such/route"),
            ("the document", "GET", "/openapi.json"),
            ("no method", "TRACE", "/jobs"),
        ]:
            answer = await made.send(method, path, token, json=BODIES.get(name))
            assert answer.status_code == 401, name
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            assert "set-cookie" not in answer.headers
            said.add(answer.text)
        assert said == {
            '{"error":{"code":"not_signed_in",'
            '"message":"you are not signed in here; sign in: updraft login URL"}}'
        }
        assert await world.state() == before

    with_api(tmp_path, check)


@pytest.mark.usefixtures("either_database")
def test_another_project_gets_nothing_of_this_one_by_any_route(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        world = await build(made)
        token = world.tokens["mallory"]
        before = await world.state()
        for name, method, path in world.routes():
            if name == "POST /sign-out":
                continue
            answer = await made.send(method, path, token, json=BODIES.get(name))
            assert "red-secret" not in answer.text, name
            code = answer.status_code
            if name in SERVER_ADMIN:
                assert code == 403, name
            elif "{job}" in name or "{project}" in name or "{token}" in name:
                assert code == 404, name
                assert answer.json()["error"]["code"] == "not_found", name
            elif name == "GET /jobs":
                assert answer.json() == {"jobs": [], "next_cursor": None}
            elif name == "GET /projects":
                assert [each["name"] for each in answer.json()["projects"]] == ["blue"]
            elif name == "POST /jobs":
                assert answer.json()["project"] == "blue"
            else:
                assert name in OWN, f"{name} has no rule here"
                assert code in (200, 201, 204), name
            # … nor by naming the project.
            answer = await made.send(method, path, token, "red", json=BODIES.get(name))
            assert answer.status_code == 404, name
            missing = await made.send(method, path, token, "nosuch", json=BODIES.get(name))
            assert answer.text.replace("red", "nosuch") == missing.text
        assert await world.state() == before

    with_api(tmp_path, check)


def test_a_viewer_looks_and_changes_nothing(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        world = await build(made)
        before = await world.state()
        for name, method, path in world.routes():
            answer = await made.send(method, path, world.tokens["vera"], json=BODIES.get(name))
            if name in LOOKING | OWN:
                assert answer.status_code in (200, 201, 204), name
            elif name == "DELETE /tokens/{token}":
                assert answer.status_code == 404, name
            else:
                assert answer.status_code == 403, name
                assert answer.json()["error"]["code"] == "not_allowed", name
            if name == "POST /sign-out":
                world.tokens["vera"] = await token_of(made, "vera")
        assert await world.state() == before

    with_api(tmp_path, check)


@pytest.mark.parametrize("scope", [Scope.READ, Scope.RUN])
def test_a_token_does_no_more_than_its_scope(tmp_path: Path, scope: Scope) -> None:
    async def check(made: Api) -> None:
        world = await build(made)
        token = await token_of(made, "rob", scope)
        running = {name for name in BODIES if "/jobs" in name} | {"POST /jobs/{job}/cancel"}
        running |= {f"POST /jobs/{{job}}/tasks/{{index}}/{do}" for do in ("cancel", "retry")}
        for name, method, path in world.routes():
            if name == "POST /sign-out":
                continue
            answer = await made.send(method, path, token, json=BODIES.get(name))
            allowed = LOOKING | (OWN - {"POST /tokens"})
            if scope is Scope.RUN:
                allowed |= running
            # 409: the job was cancelled by the route before.
            assert answer.status_code in ((200, 201, 204, 409) if name in allowed else (403,)), name

    with_api(tmp_path, check)


def test_a_member_changes_their_own_jobs_and_an_admin_everybodys(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        world = await build(made)
        await made.access.accounts.create(ADMIN, NewUser("bob"))
        await made.access.projects.set_member(ADMIN, "red", "bob", Role.MEMBER)
        bob = await token_of(made, "bob")
        path = f"/jobs/{world.job}"
        assert (await made.send("GET", path, bob)).json()["owner"] == "alice"
        refused = await made.send("POST", f"{path}/cancel", bob)
        assert (refused.status_code, refused.json()["error"]["message"]) == (
            403,
            f"job {world.job} is alice's; only they and admins of project red may do this",
        )
        rerun = await made.send("POST", f"{path}/rerun", bob, json={"key": "the-rerun-key"})
        assert rerun.json()["owner"] == "bob"
        assert (await made.send("GET", path, bob)).json()["linked"] == [rerun.json()["id"]]
        cancelled = await made.send("POST", f"{path}/cancel", world.tokens["rob"])
        assert cancelled.json()["state"] == "CANCELLED"
        entry = (await made.ask("GET", "/audit?limit=1", ADMIN)).json()["entries"][0]
        assert (entry["who"], entry["action"], entry["subject"], entry["peer"]) == (
            "rob", "cancel job", world.job, "192.0.2.1",
        )  # fmt: skip
        assert entry["details"] == {"project": "red", "owner": "alice"}

    with_api(tmp_path, check)


def test_a_server_admin_reaches_any_project_by_its_name_and_leaves_a_trace(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        world = await build(made)
        await made.access.accounts.create(ADMIN, NewUser("sue", server_admin=True))
        sue = await token_of(made, "sue")
        assert (await made.send("GET", "/jobs", sue)).json()["jobs"] == []
        (job,) = (await made.send("GET", "/jobs", sue, "red")).json()["jobs"]
        assert job["id"] == world.job
        assert (await made.send("POST", f"/jobs/{job['id']}/cancel", sue, "red")).is_success
        entries = (await made.send("GET", "/audit?user=sue", sue)).json()["entries"]
        assert [(each["action"], each["subject"]) for each in entries] == [
            ("cancel job", world.job),
            ("list jobs", "red"),
            ("list jobs", "default"),
        ]
        confined = await token_of(made, "sue", project="blue")
        assert (await made.send("GET", "/users", confined)).status_code == 403
        assert (await made.send("GET", "/jobs", confined, "red")).status_code == 404

    with_api(tmp_path, check)


def test_only_who_may_change_a_live_job_takes_over_its_streams(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        world = await build(made)
        resolve = made.jobs.resolve
        live = made.execution.live.find(world.job)
        assert await resolve(RED, world.job) is live
        assert await resolve(RED, world.job[:9]) is live
        rob = Principal("rob", project="red", role=Role.ADMIN)
        assert await resolve(rob, world.job) is live
        for role in (Role.VIEWER, Role.MEMBER):
            for job in (world.job, world.job[:9]):
                with pytest.raises(errors.NotAllowed):
                    await resolve(Principal("bob", project="red", role=role), job)
        reader = Principal("alice", project="red", scope=Scope.READ)
        with pytest.raises(errors.NotAllowed):
            await resolve(reader, world.job)
        with pytest.raises(errors.NotFound):
            await resolve(Principal("alice", project="blue"), world.job)
        entries = (await made.ask("GET", "/audit?action=attach to job", ADMIN)).json()["entries"]
        assert [each["who"] for each in entries] == ["rob"]

    with_api(tmp_path, check)


def test_the_socket_s_owner_leaves_a_trace_only_with_others_jobs(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        await made.submit("my-own-key", ADMIN)
        await made.ask("GET", "/jobs", ADMIN)
        assert (await made.ask("GET", "/audit", ADMIN)).json()["entries"] == []
        theirs = await made.submit("their-own-key", Principal("alice"))
        await made.ask("GET", "/jobs", ADMIN)
        await made.ask("GET", f"/jobs/{theirs}/logs", ADMIN)
        entries = (await made.ask("GET", "/audit", ADMIN)).json()["entries"]
        assert [(each["action"], each["subject"]) for each in entries] == [
            ("see job", theirs),
            ("list jobs", "default"),
        ]

    with_api(tmp_path, check)


def test_another_projects_ids_and_keys_neither_complete_nor_clash(tmp_path: Path) -> None:
    other = Principal("uid:4000000", project="another")

    async def check(made: Api) -> None:
        mine = await made.submit("the-same-key")
        theirs = await made.submit("the-same-key", other)
        assert mine != theirs
        # Every beginning of theirs is nothing, or mine.
        for length in range(1, len(theirs) + 1):
            answer = await made.ask("GET", f"/jobs/{theirs[:length]}")
            if mine.startswith(theirs[:length]):
                assert answer.json()["id"] == mine
            else:
                assert answer.status_code == 404
        assert (await made.ask("GET", f"/jobs?cursor={theirs}")).status_code == 400
        again = await made.ask("POST", f"/jobs/{mine}/rerun", json={"key": "rerun-key"})
        assert again.json()["source"] == mine
        shown = (await made.ask("GET", f"/jobs/{mine}", ME)).json()
        assert shown["linked"] == [again.json()["id"]]

    with_api(tmp_path, check)


def test_lists_are_the_projects_or_one_owners(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        mine = await made.submit("my-own-key")
        colleague = Principal("uid:4000001")
        theirs = await made.submit("their-own-key", colleague)
        assert await made.ids() == [theirs, mine]
        assert await made.ids("owner=~") == [mine]
        assert await made.ids("owner=~&state=IN_QUEUE", colleague) == [theirs]
        assert await made.ids("owner=uid:4000001") == [theirs]
        assert await made.ids("owner=nobody") == []

    with_api(tmp_path, check)
