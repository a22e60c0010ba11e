"""Peers that say or read next to nothing: each is ended in time, and keeps nobody out."""

import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from tests.hostile.team import Team, ended, hello, submit
from tests.waiting import until
from updraft.wire import frames

CONNECTIONS = 80
UNKNOWN = 20  # of them
SETTINGS = f"connections_per_peer = {CONNECTIONS}"
STRANGER = "127.0.0.2"
SECONDS = 20.0  # all limits here are of 10 s
SANE_SECONDS = 3.0

HEAD = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
POST = b"POST /api/v1/sign-in HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def drip(peer: socket.socket, data: bytes, first: bytes = b"") -> threading.Thread:
    """Send the first bytes at once and then one a second, until that fails."""
    peer.sendall(first)

    def send() -> None:
        with suppress(OSError, ValueError):
            for at in range(len(data)):
                peer.sendall(data[at : at + 1])
                time.sleep(1)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    return thread


SLOW: dict[str, Callable[[socket.socket], object]] = {
    "nothing": lambda peer: None,
    "half a frame's header": lambda peer: peer.sendall(b"\0"),
    "a HELLO, a byte a second": lambda peer: drip(peer, hello("x" * 100)),
    "a head, a byte a second": lambda peer: drip(peer, HEAD * 10),
    "empty lines, one a second": lambda peer: drip(peer, b"\r\n" * 50),
    "another head on a used connection": lambda peer: drip(peer, HEAD * 10, HEAD + b"\r\n"),
    "another head that begins with a request's end": lambda peer: drip(
        peer, HEAD[1:] * 10, HEAD + b"\r\n" + HEAD[:1]
    ),
    "empty lines on a used connection": lambda peer: drip(peer, b"\r\n" * 50, HEAD + b"\r\n"),
    "no end of a body that nobody waits for": lambda peer: drip(
        peer, b"x" * 500, b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n"
    ),
}


def test_who_says_next_to_nothing_is_ended(server: Team) -> None:
    peers: dict[str, socket.socket] = {}
    try:
        for how, act in SLOW.items():
            peers[how] = server.tls(STRANGER)
            act(peers[how])
        peers["no end of a handshake"] = server.dial(STRANGER)
        peers["no end of a handshake"].sendall(b"\x16\x03\x01")
        assert max(server.good() for _ in range(3)) < SANE_SECONDS
        deadline = time.monotonic() + SECONDS
        left = {how for how, peer in peers.items() if not ends(peer, deadline)}
        assert not left
    finally:
        for peer in peers.values():
            peer.close()


def ends(peer: socket.socket, deadline: float) -> bool:
    """Whether the server ends the connection by then."""
    try:
        ended(peer, max(deadline - time.monotonic(), 0.1))
    except AssertionError:
        return False
    return True


@pytest.mark.slow
def test_a_body_that_stops_is_not_waited_for(server: Team) -> None:
    with server.tls(STRANGER) as peer:
        peer.sendall(POST + b"Content-Length: 500\r\n\r\n{")
        assert ended(peer, 45) < 45


def test_strangers_fill_their_own_places_only(server: Team) -> None:
    """Before the handshake too; and what they have had is free again when they are ended."""
    silent = [server.dial(STRANGER) for _ in range(200)]
    try:
        refused = sum(not waits(peer) for peer in silent)
        assert refused >= 200 - UNKNOWN
        with pytest.raises(OSError):  # noqa: PT011 - a reset, or the end, wherever it comes
            server.tls(STRANGER)
        assert max(server.good() for _ in range(5)) < SANE_SECONDS
    finally:
        for peer in silent:
            peer.close()

    def again() -> bool:
        try:
            server.tls(STRANGER).close()
        except OSError:
            return False
        return True

    until(again, "room for the address again")


def waits(peer: socket.socket) -> bool:
    """Whether the server keeps the connection."""
    peer.settimeout(0.2)
    try:
        return peer.recv(1) != b""
    except TimeoutError:
        return True
    except OSError:
        return False


def test_many_slow_ones_from_many_addresses_slow_nobody_down(server: Team) -> None:
    before = server.resident_bytes()
    slow: list[ssl.SSLSocket] = []
    try:
        for address in range(3, 13):
            for _ in range(15):
                peer = server.tls(f"127.0.0.{address}")
                peer.sendall(HEAD)
                slow.append(peer)
        assert max(server.good() for _ in range(5)) < SANE_SECONDS
        assert server.resident_bytes() - before < 64 << 20
        for peer in slow:
            assert ended(peer, SECONDS) < SECONDS
    finally:
        for peer in slow:
            peer.close()


def test_one_address_has_its_connections_and_no_more(server: Team) -> None:
    """Signed in, too; other addresses have theirs."""
    with server.session("ben") as running:
        running.send(submit("sleep", "60", stdin=False))
        job = dict(running.answers(frames.STARTED))[frames.ACCEPTED]["job"]
        ask = (
            f"GET /api/v1/jobs/{job}/events?follow=true HTTP/1.1\r\nHost: x\r\n"
            f"Authorization: Bearer {server.tokens['ben']}\r\n\r\n"
        ).encode()

        def follow() -> ssl.SSLSocket | None:
            """A connection that stays; None: it was not taken."""
            with suppress(OSError):  # a reset, or the end, wherever it comes
                peer = server.tls(STRANGER)
                peer.sendall(ask)
                # Its answer says that it is known: it takes none of the unknown ones' places.
                if peer.recv(1 << 16).startswith(b"HTTP/1.1 200 "):
                    return peer
                peer.close()
            return None

        held: list[ssl.SSLSocket] = []
        try:
            while (peer := follow()) is not None:
                held.append(peer)
                assert len(held) <= CONNECTIONS
            assert len(held) == CONNECTIONS
            assert server.good() < SANE_SECONDS
            held.pop().close()
            again = until(follow, "room for the address again")
            assert again is not None
            held.append(again)
            assert follow() is None
        finally:
            for peer in held:
                peer.close()
        running.send(frames.message(frames.CANCEL, {}))
        assert running.answers(frames.ENDED)


def test_a_client_that_does_not_read_costs_what_its_window_is(server: Team) -> None:
    """Also one that grants itself as much as it likes."""
    before = server.resident_bytes()
    with server.session("ben") as greedy:
        greedy.peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        greedy.send(submit("head", "-c", "400M", "/dev/zero", stdin=False))
        limit = frames.frame(frames.LIMIT, frames.stream_channel(1, 1), frames.NO_LIMIT)
        until_over = time.monotonic() + 4
        while time.monotonic() < until_over and greedy.send(limit):
            time.sleep(0.05)
        assert server.resident_bytes() - before < 150 << 20
        assert server.good() < SANE_SECONDS


@pytest.mark.slow
def test_an_answer_that_is_not_read_is_ended_and_one_that_waits_is_not(server: Team) -> None:
    done = server.urun("ben", "-q", "sh", "-c", "head -c 60000000 /dev/zero >&2; sleep 0")
    assert done.returncode == 0
    with server.http("ben") as client:
        job = client.get("/jobs").json()["jobs"][0]["id"]
        with server.tls() as peer, server.session("ben") as running:
            running.send(submit("sleep", "100", stdin=False))
            (accepted,) = [
                body for kind, body in running.answers(frames.ACCEPTED) if kind == frames.ACCEPTED
            ]
            follow = client.build_request("GET", f"/jobs/{accepted['job']}/events?follow=true")
            answer = client.send(follow, stream=True)
            lines = answer.iter_lines()
            assert next(lines)
            ask = f"GET /api/v1/jobs/{job}/logs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "
            peer.sendall(f"{ask}{server.tokens['ben']}\r\n\r\n".encode())
            time.sleep(75)  # there is nothing to wait on: a peer is ended by time alone
            peer.settimeout(10)
            read = 0
            with suppress(OSError):
                while part := peer.recv(1 << 16):
                    read += len(part)
            assert read < 60_000_000
            running.send(frames.message(frames.CANCEL, {}))
            assert list(lines)  # it is told of the end
            answer.close()
