"""Strangers fill few places: the owner, users and runners get in all the same."""

from pathlib import Path

from tests.server.tcp import Peer, Tcp, with_tcp
from tests.server.test_fleet import MACHINE
from tests.server.test_guard import token_of_anna
from updraft.configuration.schema import Server
from updraft.model.access import Principal
from updraft.wire import frames

ADMIN = Principal("uid:4000000", server_admin=True)
SMALL = Server(max_connections=16, connections_per_peer=16)
HALF = b"POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nx"
ALIVE = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
STATUS = b"GET /api/v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


async def fill(tcp: Tcp, addresses: int) -> None:
    """Send half requests, 16 from each of many addresses."""
    assert await answers(await tcp.say(ALIVE, "127.0.1.1"))  # the application is loaded
    for each in range(addresses):
        for _ in range(16):
            await tcp.say(HALF, f"127.0.0.{each + 2}")
    # Who comes last is let in, or refused, after all those before.
    await (await tcp.say(ALIVE, "127.0.1.2")).all()
    while tcp.doors.unknown["127.0.1.1"] or tcp.doors.unknown["127.0.1.2"]:
        await tcp.turn()


async def answers(peer: Peer) -> bool:
    return (await peer.read()).startswith(b"HTTP/1.1 200")


def test_half_a_request_is_no_credential_and_the_owner_gets_in(tmp_path: Path) -> None:
    async def check(tcp: Tcp) -> None:
        token = await token_of_anna(tcp.made)
        await fill(tcp, 1)
        assert tcp.doors.unknown["127.0.0.2"] == 4
        async with tcp.http(token) as anna:
            assert (await anna.get("/api/v1/me")).status_code == 200
        while tcp.doors.peers["127.0.0.1"]:
            await tcp.turn()
        await fill(tcp, 8)
        assert tcp.doors.connections == 12
        assert await answers(await tcp.say_as_owner(STATUS))

    with_tcp(tmp_path, check, SMALL)


def test_there_is_room_where_runners_came_from(tmp_path: Path) -> None:
    async def check(tcp: Tcp) -> None:
        made = tcp.made
        assert (await made.ask("POST", "/pools", ADMIN, json={"name": "lab"})).status_code == 201
        told = (await made.ask("POST", "/runner-tokens", ADMIN, json={"pool": "lab"})).json()
        body = {"capacity": MACHINE, "shared": True}
        joined = await made.send("POST", "/runners/join", told["token"], json=body)
        runner = await tcp.hello(joined.json()["token"], "agent")
        assert (await runner.answers(frames.WELCOME))[-1][0] == frames.WELCOME
        runner.close()
        await fill(tcp, 8)
        assert await (await tcp.say(ALIVE, "127.0.1.3")).all() == b""
        again = await tcp.hello(joined.json()["token"], "agent")
        assert (await again.answers(frames.WELCOME))[-1][0] == frames.WELCOME

    with_tcp(tmp_path, check, SMALL)


def test_a_user_s_connection_takes_no_stranger_s_place(tmp_path: Path) -> None:
    async def check(tcp: Tcp) -> None:
        token = await token_of_anna(tcp.made)
        head = f"GET /api/v1/me HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n"
        for _ in range(8):
            assert await answers(await tcp.say(head.encode(), "127.0.0.2"))
        assert tcp.doors.unknown["127.0.0.2"] == 0

    with_tcp(tmp_path, check, SMALL)
