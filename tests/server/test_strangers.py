"""What strangers ask costs the database no more than their rate, whatever they ask it by."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.server.api import Api, with_api
from tests.server.tcp import Tcp, with_tcp
from tests.server.test_fleet import MACHINE
from tests.server.test_guard import ADMIN, token_of_anna
from updraft.server.auth import credentials
from updraft.server.services import operations
from updraft.server.services.strangers import Strangers
from updraft.wire import frames

AT_ONCE = 5
"""What the lowest rate allows."""


@contextmanager
def counted(made: Api) -> Iterator[list[Any]]:
    """Note what is read of the database."""
    seen: list[Any] = []
    read = made.database.read

    async def counting(work: Any, *, patient: bool = False) -> Any:
        seen.append(work)
        return await read(work, patient=patient)

    made.database.read = counting  # type: ignore[method-assign]
    yield seen
    made.database.read = read  # type: ignore[method-assign]


def slow_down(made: Api) -> None:
    """Give strangers their lowest rate, and let no time pass for them."""
    made.access.strangers = Strangers(1)
    made.access.strangers._rates._clock = lambda: 1000.0


def guessed() -> str:
    return credentials.new(credentials.Kind.USER).text


def test_tokens_that_look_good_are_counted_before_they_are_looked_up(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        token = await token_of_anna(made)
        assert (await made.send("GET", "/me", token)).status_code == 200
        slow_down(made)
        with counted(made) as reads:
            codes = [(await made.send("GET", "/me", guessed())).status_code for _ in range(9)]
        assert codes == [401] * AT_ONCE + [429] * 4
        assert len(reads) == AT_ONCE
        # Whoever was good is let in from the same address, also once access has changed.
        await made.access.projects.create(ADMIN, "red")
        for _ in range(3):
            assert (await made.send("GET", "/me", token)).status_code == 200
        await made.access.accounts.set_disabled(ADMIN, "anna", True)
        assert (await made.send("GET", "/me", token)).status_code == 429

    with_api(tmp_path, check)


def test_good_tokens_use_up_nothing_of_what_strangers_have(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        tokens = [await token_of_anna(made)]
        mine = {"Authorization": f"Bearer {tokens[0]}"}
        for number in range(12):
            answer = await made.send(
                "POST", "/tokens", headers=mine, json={"name": f"{number}", "scope": "run"}
            )
            assert answer.status_code in (201, 403)
            if answer.status_code == 201:
                tokens.append(answer.json()["token"])
        slow_down(made)
        for token in tokens:
            assert (await made.send("GET", "/me", token)).status_code == 200
        codes = [(await made.send("GET", "/me", guessed())).status_code for _ in range(6)]
        assert codes == [401] * AT_ONCE + [429]

    with_api(tmp_path, check)


def test_hellos_are_counted_with_requests(tmp_path: Path) -> None:
    async def check(tcp: Tcp) -> None:
        token = await token_of_anna(tcp.made)
        await tcp.hello(token)
        while not tcp.made.access.visitors:
            await tcp.turn()
        slow_down(tcp.made)
        with counted(tcp.made) as reads:
            codes = []
            for _ in range(7):
                peer = await tcp.hello(guessed())
                codes.append((await peer.answers(frames.ERROR))[-1][1]["code"])
        assert codes == ["not_signed_in"] * AT_ONCE + ["too_many_requests"] * 2
        assert len(reads) == AT_ONCE
        async with tcp.http() as stranger:
            assert (await stranger.get("/api/v1/me")).status_code == 429
        anna = await tcp.hello(token)
        anna.send(frames.ATTACH, {"job": "none", "attempt": 1, "stdout": 0, "stderr": 0})
        assert (await anna.answers(frames.ERROR))[-1][1]["code"] == "not_found"

    with_tcp(tmp_path, check)


def test_whether_the_server_is_ready_is_looked_at_once_in_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "_ASK_AGAIN_SECONDS", math.inf)

    async def check(made: Api) -> None:
        async with made.browser() as browser:
            with counted(made) as reads:
                for _ in range(9):
                    assert (await browser.get("/readyz")).status_code == 200
            assert len(reads) == 1
            monkeypatch.undo()
            made.parts.operations._asked = -math.inf
            with counted(made) as reads:
                assert (await browser.get("/readyz")).status_code == 200
            assert len(reads) == 1

    with_api(tmp_path, check)


@pytest.mark.parametrize(
    "odd",
    [
        {"project": ["default"]}, {"project": 7}, {"project": {"a": 1}}, {"token": ["x"]},
        {"wire": "1"}, {"wire": None}, {"wire": [1]}, {"role": ["client"]}, {"role": None},
    ],
)  # fmt: skip
def test_an_odd_hello_is_answered_with_a_line(tmp_path: Path, odd: dict[str, Any]) -> None:
    async def check(tcp: Tcp) -> None:
        peer = await tcp.hello(**{"token": await token_of_anna(tcp.made), **odd})
        kind, told = (await peer.answers(frames.ERROR))[-1]
        assert kind == frames.ERROR
        assert told["code"] in ("bad_request", "not_signed_in")
        assert told["message"]
        assert await peer.all() == b""

    with_tcp(tmp_path, check)


def test_an_odd_hello_of_a_runner_is_answered_with_a_line(tmp_path: Path) -> None:
    async def check(tcp: Tcp) -> None:
        made = tcp.made
        await made.ask("POST", "/pools", ADMIN, json={"name": "lab"})
        told = (await made.ask("POST", "/runner-tokens", ADMIN, json={"pool": "lab"})).json()
        body = {"capacity": MACHINE, "shared": True}
        joined = await made.send("POST", "/runners/join", told["token"], json=body)
        control = await tcp.hello(joined.json()["token"], "agent")
        await control.answers(frames.WELCOME)
        peer = await tcp.hello(joined.json()["token"], "agent-data", session=["x"])
        assert (await peer.answers(frames.ERROR))[-1][1]["code"] == "not_allowed"
        assert await peer.all() == b""

    with_tcp(tmp_path, check)


def test_whatever_fails_while_one_is_let_in_is_answered(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def check(tcp: Tcp) -> None:
        async def broken(*_: Any, **__: Any) -> Any:
            raise ZeroDivisionError

        tcp.made.access.authenticate = broken  # type: ignore[method-assign]
        peer = await tcp.hello("x")
        kind, told = (await peer.answers(frames.ERROR))[-1]
        assert (kind, told["code"]) == (frames.ERROR, "internal")
        assert told["message"] == "the server failed (ZeroDivisionError); see its log"
        assert "cannot tell who asks" in caplog.text

    with_tcp(tmp_path, check)
