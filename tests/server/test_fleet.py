"""Pools and runners over HTTP: who sees what, what is changed, and what the audit keeps of it."""

import os
import re
from pathlib import Path
from typing import Any

from tests.configuration.test_reading import where
from tests.server.api import Api, with_api
from tests.server.test_scoping import token_of
from updraft import __version__
from updraft.configuration import reading
from updraft.model.access import Principal, Role
from updraft.runner.joined import Joined
from updraft.server.services.accounts import NewUser
from updraft.server.services.live import Upgrade
from updraft.wire.transport import FrameConnection

ADMIN = Principal("uid:4000000", server_admin=True)
GPUS = [
    {"index": 0, "uuid": "GPU-0", "kind": "NVIDIA A100-SXM4-80GB", "memory_bytes": 1 << 36},
    {"index": 1, "uuid": "GPU-1", "kind": "NVIDIA A100-SXM4-80GB", "memory_bytes": 1 << 36},
    {"index": 2, "uuid": "GPU-2", "kind": "NVIDIA GeForce RTX 4090", "memory_bytes": 1 << 34},
]
MACHINE = {"cpus_milli": 8000, "memory_bytes": 1 << 34, "gpus": GPUS, "host": "node1.example"}


async def joined(made: Api, pool: str, **more: Any) -> str:
    """Let a machine join and return its runner's name."""
    token = (await made.ask("POST", "/runner-tokens", ADMIN, json={"pool": pool})).json()["token"]
    body = {"capacity": MACHINE, "shared": True, **more}
    answer = await made.send("POST", "/runners/join", token, json=body)
    assert answer.status_code == 201, answer.text
    name: str = answer.json()["name"]
    return name


async def message(made: Api, method: str, path: str, **options: Any) -> tuple[int, str]:
    answer = await made.ask(method, path, ADMIN, **options)
    return answer.status_code, answer.json()["error"]["message"]


async def actions(made: Api) -> list[tuple[str, str]]:
    entries = (await made.ask("GET", "/audit", ADMIN)).json()["entries"]
    return [(each["action"], each["subject"]) for each in reversed(entries)]


def test_a_pool_is_made_changed_drained_and_deleted_and_the_audit_tells(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        wanted = {"cpus": 4, "gpus": {"a100": 1}, "labels": {"disk": "fast"}, "max_runners": 1}
        made_pool = (await made.ask("POST", "/pools", ADMIN, json={"name": "gpu", **wanted})).json()
        assert wanted.items() <= made_pool["settings"].items()
        answer = await made.ask("PUT", "/pools/gpu", ADMIN, json={"price_per_hour": "2.50"})
        assert answer.json()["settings"]["price_per_hour"] == "2.50"
        assert answer.json()["settings"]["cpus"] is None
        assert (await made.ask("POST", "/pools/gpu/drain", ADMIN)).json()["draining"]
        refused = await made.ask(
            "POST",
            "/jobs",
            json={"key": "my-own-key", "argv": ["a"], "directory": "/", "pool": "gpu"},
        )
        assert refused.json()["error"]["message"] == (
            "pool gpu is being drained and takes no new jobs; choose another with -P, or let it "
            "take some again: updraft pool drain gpu --undo"
        )
        assert not (await made.ask("POST", "/pools/gpu/drain?undo=1", ADMIN)).json()["draining"]
        assert (await made.ask("DELETE", "/pools/gpu", ADMIN)).status_code == 204
        assert await message(made, "GET", "/pools/gpu") == (
            404,
            "there is no pool 'gpu'; the pools are: local",
        )
        assert await actions(made) == [
            ("create pool", "gpu"),
            ("update pool", "gpu"),
            ("drain pool", "gpu"),
            ("undrain pool", "gpu"),
            ("delete pool", "gpu"),
        ]

    with_api(tmp_path, check)


def test_a_pool_with_runners_or_jobs_is_not_deleted(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        await made.ask("POST", "/pools", ADMIN, json={"name": "gpu"})
        name = await joined(made, "gpu")
        assert await message(made, "DELETE", "/pools/gpu") == (
            409,
            f"pool gpu has 1 runner; remove them first: updraft runner remove {name}",
        )
        assert (await made.ask("DELETE", f"/runners/{name}", ADMIN)).status_code == 204
        job = await made.submit("my-own-key", ADMIN, pool="gpu")
        assert await message(made, "DELETE", "/pools/gpu") == (
            409,
            "pool gpu has 1 job; let it take no new ones and wait, or cancel them: updraft pool "
            "drain gpu",
        )
        await made.ask("POST", f"/jobs/{job}/cancel", ADMIN)
        assert (await made.ask("DELETE", "/pools/gpu", ADMIN)).status_code == 204

    with_api(tmp_path, check)


def test_a_configured_pool_is_not_changed_by_command(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        said = (
            409,
            "pool local is not changed by command: it is written in the server's updraft.toml, or "
            "is its own machine; change it there and restart the server",
        )
        assert await message(made, "DELETE", "/pools/local") == said
        assert await message(made, "PUT", "/pools/local", json={"cpus": 1}) == said
        assert await message(made, "POST", "/pools/local/drain") == said
        assert await actions(made) == []

    with_api(tmp_path, check)


def test_a_runner_offers_no_more_than_its_pools_shape(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        body = {"name": "gpu", "cpus": 4, "memory_bytes": 1 << 30, "gpus": {"a100": 1}}
        await made.ask("POST", "/pools", ADMIN, json=body)
        name = await joined(made, "gpu")
        runner = (await made.ask("GET", f"/runners/{name}", ADMIN)).json()
        assert (name, runner["cpus"], runner["memory_bytes"]) == ("node1", 4, 1 << 30)
        assert [gpu["uuid"] for gpu in runner["gpus"]] == ["GPU-0"]
        await made.ask("PUT", "/pools/gpu", ADMIN, json={"gpus": {"rtx 4090": 4}})
        runner = (await made.ask("GET", f"/runners/{name}", ADMIN)).json()
        assert (runner["cpus"], runner["cpus_free"], runner["memory_bytes"]) == (8, 8, 1 << 34)
        assert [gpu["uuid"] for gpu in runner["gpus"]] == ["GPU-2"]

    with_api(tmp_path, check)


def test_runners_and_join_tokens_come_and_go_and_the_audit_tells(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        await made.ask("POST", "/pools", ADMIN, json={"name": "gpu"})
        name = await joined(made, "gpu", name="left")
        assert (await made.ask("POST", f"/runners/{name}/drain", ADMIN)).is_success
        assert (await made.ask("DELETE", f"/runners/{name}", ADMIN)).status_code == 204
        (token,) = (await made.ask("GET", "/runner-tokens", ADMIN)).json()["tokens"]
        assert (token["pool"], token["used"], token["uses"]) == ("gpu", 1, None)
        path = f"/runner-tokens/{token['id']}"
        assert (await made.ask("DELETE", path, ADMIN)).status_code == 204
        assert (await made.ask("GET", "/runner-tokens", ADMIN)).json() == {"tokens": []}
        assert await message(made, "DELETE", path) == (
            404,
            f"there is no join token '{token['id']}'; see: updraft runner tokens list",
        )
        assert await message(made, "DELETE", "/runners/local") == (
            409,
            "the local runner is this server's own; end it: updraft stop",
        )
        assert await actions(made) == [
            ("create pool", "gpu"),
            ("create join token", token["id"]),
            ("join runner", "left"),
            ("drain runner", "left"),
            ("remove runner", "left"),
            ("revoke join token", token["id"]),
        ]

    with_api(tmp_path, check)


def test_a_pool_is_named_by_one_rule_in_the_file_and_by_command(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        for name, good in (("a_b.c-1", True), ("_a", False), ("a.", False), ("A", False)):
            answer = await made.ask("POST", "/pools", ADMIN, json={"name": name})
            assert answer.is_success == good, name
            folders = where(tmp_path, f'[pools."{name}"]')
            assert (not reading.read(folders).problems) == good, name

    with_api(tmp_path, check)


def test_the_audit_tells_by_whose_token_a_machine_joined_and_from_where(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        await made.ask("POST", "/pools", ADMIN, json={"name": "gpu"})
        name = await joined(made, "gpu", name="left")
        (token,) = (await made.ask("GET", "/runner-tokens", ADMIN)).json()["tokens"]
        entry = (await made.ask("GET", "/audit", ADMIN)).json()["entries"][0]
        assert (entry["who"], entry["action"], entry["subject"], entry["peer"]) == (
            ADMIN.owner, "join runner", name, "192.0.2.1",
        )  # fmt: skip
        assert entry["details"] == {"pool": "gpu", "token": token["id"]}

    with_api(tmp_path, check)


def test_a_machine_that_is_a_runner_already_joins_no_second_time(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        await made.ask("POST", "/pools", ADMIN, json={"name": "gpu"})
        token = (await made.ask("POST", "/runner-tokens", ADMIN, json={"pool": "gpu"})).json()
        body: dict[str, Any] = {"capacity": MACHINE, "shared": True}

        async def join(**more: Any) -> tuple[int, Any]:
            answer = await made.send("POST", "/runners/join", token["token"], json={**body, **more})
            return answer.status_code, answer.json()

        code, first = await join()
        assert (code, first["name"]) == (201, "node1")
        place = Joined("https://x", first["name"], "gpu", first["token"])
        code, said = await join(joined_as=["0" * 12, place.credential_id])
        assert (code, said["error"]["message"]) == (
            409,
            "this machine is runner node1 already; to join it anew, remove that first: updraft "
            "runner remove node1",
        )
        code, said = await join(name="node1")  # it was installed anew, and knows nothing of that
        assert (code, said["error"]["message"]) == (
            409,
            "there is a runner node1 already; choose another --name, or remove it: updraft runner "
            "remove node1",
        )
        assert (await made.ask("DELETE", "/runners/node1", ADMIN)).status_code == 204
        assert (await join(joined_as=[place.credential_id]))[0] == 201

    with_api(tmp_path, check)


def test_a_runner_serves_nobody_who_does_not_exist(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        await made.ask("POST", "/pools", ADMIN, json={"name": "gpu"})
        await made.access.accounts.create(ADMIN, NewUser("ben"))
        token = (await made.ask("POST", "/runner-tokens", ADMIN, json={"pool": "gpu"})).json()
        for owner in ("nosuch", "uid:123456789", "no such\x7f"):
            answer = await made.send(
                "POST", "/runners/join", token["token"], json={"capacity": MACHINE, "serves": owner}
            )
            assert (answer.status_code, answer.json()["error"]["message"]) == (
                400,
                f"serves: there is no user {owner!r}; see: updraft user list, or make them: "
                "updraft user add",
            )
        assert (await made.ask("GET", "/runners", ADMIN)).json()["runners"][1:] == []
        for owner in ("", "ben", ADMIN.owner, f"uid:{os.geteuid()}"):
            await joined(made, "gpu", shared=False, serves=owner)

    with_api(tmp_path, check)


def test_a_job_whose_pool_has_runners_is_told_why_none_takes_it(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        await made.ask("POST", "/pools", ADMIN, json={"name": "lab"})
        job = await made.submit("my-own-key", ADMIN, pool="lab")

        async def reason() -> str:
            said: str = (await made.ask("GET", f"/jobs/{job}", ADMIN)).json()["reason"]
            return said

        def comes(name: str) -> None:
            live = made.execution.live.runners[name]
            live.control = live.data = FrameConnection(Silent())

        assert await reason() == "pool lab has no runner yet"
        await made.access.accounts.create(ADMIN, NewUser("ben"))
        await joined(made, "lab", name="bens", shared=False, serves="ben")
        assert await reason() == "pool lab has only runners that serve others: bens serves ben"
        await joined(made, "lab", name="vm")
        assert re.fullmatch(r"runner vm is away, and was last heard of \d+ s ago", await reason())
        await made.ask("POST", "/runners/vm/drain", ADMIN)
        comes("vm")
        assert await reason() == "runner vm is drained; updraft runner drain vm --undo"
        await joined(made, "lab", name="vm2")
        assert await reason() == (
            "none of pool lab's runners takes tasks now: 1 drained, 1 away; updraft runner list"
        )
        comes("vm2")
        assert await reason() == "pool lab is about to start it"

    with_api(tmp_path, check)


def test_the_only_pool_that_a_project_may_use_is_meant_where_none_is_named(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        made.execution.live.pools.clear()  # as on a server whose machine is none
        await made.access.projects.create(ADMIN, "red")
        ask = {"key": "my-own-key", "argv": ["true"], "directory": "/"}
        answer = await made.ask("POST", "/jobs", ADMIN, json=ask)
        assert answer.json()["error"]["message"].startswith("there is no pool yet;")
        await made.ask("POST", "/pools", ADMIN, json={"name": "reds", "projects": ["red"]})
        await made.ask("POST", "/pools", ADMIN, json={"name": "lab"})
        job = await made.submit("my-own-key", ADMIN)
        assert (await made.ask("GET", f"/jobs/{job}", ADMIN)).json()["pool"] == "lab"
        red = Principal("uid:4000000", project="red")
        answer = await made.ask("POST", "/jobs", red, json={**ask, "key": "another-key"})
        assert answer.json()["error"]["message"] == "which pool? choose one with -P: lab, reds"
        await made.ask("POST", "/pools/lab/drain", ADMIN)
        answer = await made.ask("POST", "/jobs", ADMIN, json={**ask, "key": "one-more-key"})
        assert answer.json()["error"]["message"].startswith("pool lab is being drained")

    with_api(tmp_path, check)


def test_a_user_sees_their_projects_pools_and_of_others_only_how_many_are_ahead(
    tmp_path: Path,
) -> None:
    async def check(made: Api) -> None:
        for project in ("red", "blue"):
            await made.access.projects.create(ADMIN, project)
        await made.access.accounts.create(ADMIN, NewUser("alice"))
        await made.access.projects.set_member(ADMIN, "red", "alice", Role.MEMBER)
        alice = await token_of(made, "alice")
        for name, projects in (("ours", ["red", "blue"]), ("theirs", ["blue"])):
            await made.ask("POST", "/pools", ADMIN, json={"name": name, "projects": projects})
        for key in ("their-key-1", "their-key-2"):
            await made.submit(key, Principal("mallory", project="blue"), pool="ours")
        await made.submit("my-own-key", Principal("alice", project="red"), pool="ours")
        answer = await made.send("GET", "/pools", alice)
        assert "blue" not in answer.text
        assert "theirs" not in answer.text
        shown = {each["name"]: each for each in answer.json()["pools"]}
        ours = shown["ours"]
        assert (ours["queued"], ours["running"], ours["ahead"]) == (1, 0, 2)
        assert ours["reason"] == "pool ours has no runner yet"
        assert ours["settings"]["projects"] == ["red"]
        hidden = await made.send("GET", "/pools/theirs", alice)
        missing = await made.send("GET", "/pools/nosuch", alice)
        assert hidden.status_code == missing.status_code == 404
        assert hidden.text.replace("theirs", "nosuch") == missing.text
        all_of_it = (await made.ask("GET", "/pools/ours", ADMIN)).json()
        assert (all_of_it["queued"], all_of_it["ahead"]) == (3, 0)

    with_api(tmp_path, check)


def test_a_wrong_setting_is_named_and_nothing_is_made(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        for field, value in (
            ("name", "GPU"), ("cpus", -1), ("memory_bytes", 0), ("gpus", {"a100": -1}),
            ("labels", {"": "x"}), ("region", "a\nb"), ("max_runners", 0), ("projects", [""]),
            ("price_per_hour", "NaN"), ("time_limit_seconds", 0), ("nosuch", 1),
        ):  # fmt: skip
            answer = await made.ask("POST", "/pools", ADMIN, json={"name": "new", field: value})
            assert answer.status_code == 400, field
            assert answer.json()["error"]["message"].startswith(field), answer.text
        assert [
            each["name"] for each in (await made.ask("GET", "/pools", ADMIN)).json()["pools"]
        ] == ["local"]

    with_api(tmp_path, check)


def test_a_runner_that_cannot_be_upgraded_is_told_with_the_mend(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        await made.ask("POST", "/pools", ADMIN, json={"name": "gpu"})
        name = await joined(made, "gpu")
        live = made.execution.live.runners[name]
        path = f"/runners/{name}/upgrade"
        # What was never heard of, and what has the server's release, has nothing to do.
        assert (await made.ask("POST", path, ADMIN)).json()["outdated"] is False
        live.release = __version__
        assert (await made.ask("POST", path, ADMIN)).json()["upgrading"] is False
        live.release = "0.0.1"
        assert await message(made, "POST", path) == (
            409,
            f"the wheelhouse has no wheel of release {__version__}; make it: updraft admin "
            "wheelhouse",
        )
        wheels = tmp_path / "wheelhouse"
        wheels.mkdir()
        (wheels / f"updraft_cloud-{__version__}-py3-none-any.whl").touch()
        assert await message(made, "POST", path) == (
            409,
            f"runner {name} is away; upgrade it when it is back",
        )
        live.control = FrameConnection(Silent())
        assert await message(made, "POST", path) == (
            409,
            f"runner {name} cannot be upgraded from here: its release does not know how; upgrade "
            "Updraft on its machine, with what installed it",
        )
        live.upgrade = Upgrade("it lies on a read-only disk")
        assert await message(made, "POST", path) == (
            409,
            f"runner {name} cannot be upgraded from here: it lies on a read-only disk",
        )
        assert (await made.ask("POST", path)).status_code == 403
        assert ("upgrade runner", name) not in await actions(made)
        live.upgrade = Upgrade("", problem="no room")
        assert (await made.ask("POST", path, ADMIN)).json()["upgrading"] is True
        assert (await made.ask("POST", path, ADMIN)).json()["upgrade_problem"] is None
        # It was asked once.
        assert (await actions(made)).count(("upgrade runner", name)) == 1

    with_api(tmp_path, check)


class Silent:
    """The other end of a connection on which nothing comes."""

    def frame(self, kind: int, channel: int, offset: int, payload: bytes | memoryview) -> None:
        raise AssertionError("nothing is sent")

    def closed(self) -> None:
        """It never was open."""

    def writable(self, ready: bool) -> None:
        """Nothing reads."""
