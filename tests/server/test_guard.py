"""The guard: what is added later is closed, too, and only the header counts."""

from pathlib import Path
from typing import Any

import pytest

from tests.server.api import ME, Api, with_api
from updraft.model.access import Principal, Role
from updraft.server.api.guard import PUBLIC
from updraft.server.services.accounts import NewUser
from updraft.server.services.sign_in import NewToken

ADMIN = Principal("uid:4000000", server_admin=True)


async def token_of_anna(made: Api) -> str:
    await made.access.accounts.create(ADMIN, NewUser("anna"))
    await made.access.projects.set_member(ADMIN, "default", "anna", Role.MEMBER)
    return (await made.access.sign_in.create_token(ADMIN, NewToken("x", user="anna")))[1]


def test_a_route_that_is_added_is_closed_until_it_is_listed(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        async def new_route() -> dict[str, str]:
            return {"told": "all"}

        made.app.add_api_route("/api/v1/new", new_route)
        assert (await made.send("GET", "/new")).status_code == 401
        assert (await made.send("GET", "/new", await token_of_anna(made))).json() == {"told": "all"}

    with_api(tmp_path, check)


def test_the_public_list_is_short_and_every_part_of_it_is_meant(tmp_path: Path) -> None:
    assert {path for _, path in PUBLIC} == {
        "/healthz", "/readyz", "/api/v1/runners/join", "/api/v1/sign-in", "/api/v1/device",
        "/api/v1/device/token", "/login", "/login/oidc", "/login/oidc/callback",
        "/join", "/wheels/", "/wheels/{wheel}",
    }  # fmt: skip

    async def check(made: Api) -> None:
        for method, path in PUBLIC:
            async with made.browser() as browser:
                answer = await browser.request(method, path)
            assert answer.status_code != 401 or path.startswith("/login"), path
            assert answer.status_code < 500, path
        # Another method, or a path beside it, is none of them.
        for method, path in (
            ("DELETE", "/login"), ("GET", "/login/"), ("GET", "/api/v1/device"),
            ("PUT", "/wheels/"), ("GET", "/wheels/a/b"), ("GET", "/joins"),
        ):  # fmt: skip
            async with made.browser() as browser:
                assert (await browser.request(method, path)).status_code == 401

    with_api(tmp_path, check)


def test_every_route_is_in_the_document_or_public(tmp_path: Path) -> None:
    """What is tried by everybody who must not get through is made from the document."""

    def hidden(routes: Any) -> set[tuple[str, str]]:
        found: set[tuple[str, str]] = set()
        for route in routes:
            included = getattr(route, "original_router", None)
            if included is not None:
                found |= hidden(included.routes)
            elif not getattr(route, "include_in_schema", False):
                methods = getattr(route, "methods", None) or {"any"}
                found |= {(method, route.path) for method in methods - {"HEAD"}}
        return found

    async def check(made: Api) -> None:
        pages = {each for each in PUBLIC if each[1].startswith("/login")}
        assert hidden(made.app.routes) == {*pages, ("GET", "/api/v1/openapi.json")}

    with_api(tmp_path, check)


@pytest.mark.parametrize("place", ["cookie", "query", "basic", "lower case"])
def test_a_token_counts_in_the_authorization_header_only(tmp_path: Path, place: str) -> None:
    async def check(made: Api) -> None:
        token = await token_of_anna(made)
        path, headers = "/me", {}
        match place:
            case "cookie":
                headers = {"Cookie": f"token={token}; __Host-updraft={token}"}
            case "query":
                path = f"/me?access_token={token}&token={token}"
            case "basic":
                headers = {"Authorization": f"Basic {token}"}
            case "lower case":
                headers = {"Authorization": f"bearer {token}"}
        answer = await made.send("GET", path, headers=headers)
        assert answer.status_code == (200 if place == "lower case" else 401)

    with_api(tmp_path, check)


def test_a_web_socket_without_credentials_is_refused_before_it_is_accepted(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "websocket.connect"}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "websocket", "path": "/login", "headers": [], "client": ("192.0.2.1", 1),
            "query_string": b"", "subprotocols": [],
        }  # fmt: skip
        await made.app(scope, receive, send)
        assert sent == [{"type": "websocket.close", "code": 1008}]

    with_api(tmp_path, check)


def test_a_peer_of_the_socket_names_another_project_only_as_an_admin(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        await made.access.projects.create(ADMIN, "red")

        async def asked(who: Principal, project: str) -> tuple[int, str]:
            headers = {"Updraft-Project": project}
            answer = await made.ask("GET", "/me", who, headers=headers)
            return answer.status_code, str(answer.json().get("project"))

        assert await asked(ADMIN, "red") == (200, "red")
        assert await asked(ADMIN, "default") == (200, "default")
        assert (await asked(ADMIN, "nosuch"))[0] == 404
        assert (await asked(ME, "red"))[0] == 404

    with_api(tmp_path, check)
