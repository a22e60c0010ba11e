"""P9: no route shows or changes anything of another principal's."""

from pathlib import Path
from typing import Any

import pytest

from tests.server.api import ME, Api, with_api
from updraft.model.access import Principal

OTHERS = [
    pytest.param(Principal("uid:4000001"), id="another-user"),
    pytest.param(Principal("uid:4000000", project="another"), id="another-project"),
]

BODIES: dict[str, dict[str, Any]] = {
    "POST /jobs": {"key": "their-own-key", "argv": ["true"], "directory": "/"},
    "POST /jobs/{job}/extend": {"seconds": 60},
    "POST /jobs/{job}/rerun": {"key": "another-key"},
    "POST /stop": {"mode": "cancel"},
}
REFUSED = {"GET /status", "POST /stop", "GET /metrics"}
"""What is the server owner's alone."""


PUBLIC = {"GET /healthz": "alive\n", "GET /readyz": "ready\n"}
"""What everybody is told."""


def routes(made: Api) -> list[tuple[str, str]]:
    """Every method and path that the API document names."""
    return [
        (method.upper(), path.removeprefix("/api/v1"))
        for path, operations in made.document["paths"].items()
        for method in operations
    ]


@pytest.mark.parametrize("other", OTHERS)
def test_every_route_is_empty_or_refuses_for_another_principal(
    tmp_path: Path, other: Principal
) -> None:
    async def check(made: Api) -> None:
        mine = await made.submit("my-own-key", labels={"a": "b"}, time_limit_seconds=60)
        before = (await made.ask("GET", f"/jobs/{mine}")).json()
        seen = set()
        for method, path in routes(made):
            name = f"{method} {path}"
            full = path.replace("{job}", mine).replace("{stream}", "stdout")
            if name in PUBLIC or name == "GET /metrics":
                full = f"http://x{path}"  # beside the API
            answer = await made.ask(method, full, other, json=BODIES.get(name))
            seen.add(name)
            if "{job}" in path:
                assert answer.status_code == 404, name
                assert answer.json()["error"]["code"] == "not_found", name
                assert mine in answer.json()["error"]["message"]
            elif name in PUBLIC:
                assert answer.text == PUBLIC[name]
            elif name in REFUSED:
                assert answer.status_code == 403, name
            elif name == "GET /jobs":
                assert answer.json() == {"jobs": [], "next_cursor": None}
            else:
                assert name == "POST /jobs", f"{name} has no rule here"
                assert answer.json()["owner"] == other.owner
                assert answer.json()["project"] == other.project
        assert seen >= set(BODIES) | REFUSED
        after = (await made.ask("GET", f"/jobs/{mine}")).json()
        assert {**after, "reason": ""} == {**before, "reason": ""}
        assert await made.ids() == [mine]

    with_api(tmp_path, check)


@pytest.mark.parametrize("other", OTHERS)
def test_another_principals_ids_neither_complete_nor_clash(
    tmp_path: Path, other: Principal
) -> None:
    async def check(made: Api) -> None:
        mine = await made.submit("my-own-key")
        theirs = await made.submit("their-own-key", other)
        assert mine != theirs
        # Every beginning of theirs is nothing, or mine.
        for length in range(1, len(theirs) + 1):
            answer = await made.ask("GET", f"/jobs/{theirs[:length]}")
            if mine.startswith(theirs[:length]):
                assert answer.json()["id"] == mine
            else:
                assert answer.status_code == 404

    with_api(tmp_path, check)


def test_a_cursor_of_another_principals_is_none(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        theirs = await made.submit("their-own-key", Principal("uid:4000001"))
        answer = await made.ask("GET", f"/jobs?cursor={theirs}")
        assert answer.status_code == 400

    with_api(tmp_path, check)


def test_a_rerun_is_not_linked_for_others(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        mine = await made.submit("my-own-key")
        again = await made.ask("POST", f"/jobs/{mine}/rerun", json={"key": "rerun-key"})
        assert again.json()["source"] == mine
        shown = (await made.ask("GET", f"/jobs/{mine}", ME)).json()
        assert shown["linked"] == [again.json()["id"]]

    with_api(tmp_path, check)
