"""What a request may make the server hold, over TCP: little, until it has a good credential."""

from pathlib import Path

import pytest

from tests.server.tcp import Tcp, with_tcp
from tests.server.test_guard import token_of_anna

TYPES = ("application/json", "application/json; x=octet-stream", "application/octet-stream", "")


@pytest.mark.parametrize("path", ["/api/v1/sign-in", "/api/v1/sign%2Din", "//api/v1/sign-in"])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_stranger_cannot_make_the_server_read_much(
    tmp_path: Path, path: str, chunked: bool
) -> None:
    body = b'{"name": "' + b"x" * 70_000 + b'", "password": "x"}'
    told = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % len(body)
    if chunked:
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n".encode()

    async def check(tcp: Tcp) -> None:
        peer = await tcp.say(head + told + b"\r\n\r\n" + body)
        status = (await peer.reader.readline()).split()[1]
        assert status == (b"413" if path.startswith("/api") else b"401")

    with_tcp(tmp_path, check)


@pytest.mark.parametrize("kind", TYPES)
def test_values_are_counted_whatever_the_type_says(tmp_path: Path, kind: str) -> None:
    async def check(tcp: Tcp) -> None:
        token = await token_of_anna(tcp.made)
        head = (
            f"POST /api/v1/jobs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
            f"Content-Type: {kind}\r\nContent-Length: "
        ).encode()

        async def status(length: int, body: bytes) -> bytes:
            peer = await tcp.say(head + b"%d\r\n\r\n" % length + body)
            return (await peer.reader.readline()).split()[1]

        assert await status(300_000, b"[" * 300_000) == b"400"
        assert await status(700_001, b"[" * 700_001) == b"413"
        assert await status(17 << 20, b"") == b"413"

    with_tcp(tmp_path, check)


def test_a_connection_that_was_good_is_not_trusted_with_the_next_request(tmp_path: Path) -> None:
    async def check(tcp: Tcp) -> None:
        token = await token_of_anna(tcp.made)
        good = f"GET /api/v1/me HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n"
        peer = await tcp.say(good.encode())
        assert (await peer.read()).startswith(b"HTTP/1.1 200")
        head = b"POST /api/v1/sign-in HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        peer.writer.write(head + b"Content-Length: 70000\r\n\r\n")
        assert (await peer.all()).startswith(b"HTTP/1.1 413")

    with_tcp(tmp_path, check)


def test_what_bodies_took_is_given_back_when_requests_are_pipelined(tmp_path: Path) -> None:
    async def check(tcp: Tcp) -> None:
        body = b"x" * 1000
        one = b"POST /api/v1/sign-in HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n" + body
        last = one.replace(b"Host: x", b"Host: x\r\nConnection: close")
        peer = await tcp.say(one * 5 + last)
        assert (await peer.all()).count(b"HTTP/1.1 ") == 6
        await tcp.gone()
        assert tcp.bodies_held == 0

    with_tcp(tmp_path, check)
