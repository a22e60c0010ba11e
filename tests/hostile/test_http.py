"""HTTP that is too large, malformed, from other sites, or too often: refused, and never a 5xx."""

import json
import socket
import time
from contextlib import suppress

import pytest

from tests.hostile.team import Team, code_of
from updraft.server.auth.rates import Rates

SETTINGS = "requests_per_second = 40"
MEMORY = 64 << 20
POST = b"POST /api/v1/sign-in HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def status(peer: socket.socket) -> int:
    """The status of the answer; 0: the connection ended without one."""
    peer.settimeout(15)
    with suppress(OSError):
        words = peer.recv(1 << 16).split(b" ")
        return int(words[1]) if len(words) > 1 else 0
    return 0


ENDLESS = {
    "a header": (b"GET /healthz HTTP/1.1\r\nHost: x\r\nA: ", b"x" * 65536, b""),
    "headers": (b"GET /healthz HTTP/1.1\r\nHost: x\r\n", b"A: b\r\n" * 10000, b""),
    "an address": (b"GET /healthz?", b"a=b&" * 16384, b""),
    "a body": (POST + b"Transfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + b"x" * 65536, b"\r\n"),
    "a chunk's extension": (
        POST + b"Transfer-Encoding: chunked\r\n\r\n1;", b"x" * 65536, b"",
    ),
    "trailers": (
        POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"A: b\r\n" * 10000, b"",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", ENDLESS)
def test_what_has_no_end_is_refused(server: Team, what: str) -> None:
    before = server.resident_bytes()
    begin, piece, end = ENDLESS[what]
    deadline = time.monotonic() + 15
    most = before
    with server.tls() as peer:
        with suppress(OSError):
            peer.sendall(begin)
            while time.monotonic() < deadline:
                peer.sendall(piece + end)
                most = max(most, server.resident_bytes())
        assert time.monotonic() < deadline, "the server took it"
        assert status(peer) in (0, 400, 413, 431)
    assert most - before < MEMORY


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"[" * 200_000, 400),
        (b"[" + b"[]," * 5_000_000 + b"1]", 413),
        (b'{"a":' * 100_000, 400),
        (b'"' + b"x" * (17 << 20) + b'"', 413),
        (b"\xff\xfe", 400),
        (b'{"key": 1e999, "argv": NaN}', 400),
    ],
    ids=["nested", "many values", "nested objects", "large", "no text", "no numbers"],
)
def test_json_that_grows_when_it_is_read_is_refused(
    server: Team, content: bytes, told: int
) -> None:
    before = server.resident_bytes()
    headers = {"Content-Type": "application/json"}
    with server.http("anna") as client, suppress(ConnectionError):
        answer = client.post("/jobs", content=content, headers=headers)
        assert answer.status_code == told
    assert server.resident_bytes() - before < 128 << 20


ODD = {
    "two lengths": POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n{}   G",
    "length and chunks": POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "unknown coding": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a space before the colon": b"GET /healthz HTTP/1.1\r\nHost : x\r\n\r\n",
    "a folded header": b"GET /healthz HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n",
    "bare newlines": b"GET /healthz HTTP/1.1\nHost: x\n\n",
    "a negative length": POST + b"Content-Length: -1\r\n\r\n",
    "a length of many digits": POST + b"Content-Length: " + b"9" * 400 + b"\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a proxy's request": b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n",
    "no address": b"GET \xff\xff HTTP/1.1\r\n\r\n",
    "a WebSocket": (
        b"GET /login HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Origin: https://evil.example\r\nSec-WebSocket-Key: eA==\r\n"
        b"Sec-WebSocket-Version: 13\r\n\r\n"
    ),
}


@pytest.mark.parametrize("how", ODD)
def test_odd_http_is_no_failure_and_hides_no_second_request(server: Team, how: str) -> None:
    hidden = b"GET /api/v1/hidden HTTP/1.1\r\nHost: x\r\n\r\n"
    with server.tls() as peer:
        peer.sendall(ODD[how] + (hidden if how != "a WebSocket" else b""))
        peer.settimeout(8)
        said = b""
        with suppress(OSError):
            while part := peer.recv(1 << 16):
                said += part
    assert b" 101 " not in said
    assert said.count(b"HTTP/1.1 ") == 1
    assert b"HTTP/1.1 5" not in said


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "https://["},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_forms_of_other_sites_are_refused(server: Team, headers: dict[str, str]) -> None:
    body = {"name": "anna", "password": "x"}
    with server.http() as client, server.http("anna") as anna:
        for answer in (
            client.post(f"{server.url}/login", data={"do": "sign-in", **body}, headers=headers),
            client.post("/sign-in", json=body, headers=headers),
            anna.post("/jobs", json={}, headers=headers),
        ):
            assert answer.status_code == 403, answer.text
        for path in ("/me", f"{server.url}/login"):
            answer = anna.get(path, headers=headers)
            assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_credential_has_its_rate_and_others_have_theirs(server: Team) -> None:
    with server.http("vera") as vera, server.http("anna") as anna:
        codes = [vera.get("/me").status_code for _ in range(400)]
        refused = vera.get("/me")
        while refused.status_code != 429:
            refused = vera.get("/me")
        assert set(codes) == {200, 429}
        assert int(refused.headers["Retry-After"]) >= 1
        assert code_of(refused) == "too_many_requests"
        assert anna.get("/me").status_code == 200


def test_strangers_have_a_rate_by_address(server: Team) -> None:
    with server.http() as client:
        codes = [client.post("/device/token", json={"device_code": "x"}) for _ in range(60)]
        assert codes[-1].status_code == 429
        assert json.loads(codes[-1].content)["error"]["message"].startswith("too many requests")
        assert client.get(f"{server.url}/healthz").status_code == 200
    assert server.good() < 3


def test_rates_are_kept_in_bounded_memory_and_refill() -> None:
    now = [0.0]
    rates = Rates(2, clock=lambda: now[0], max_keys=3)
    assert [rates.take("a") > 0 for _ in range(11)] == [False] * 10 + [True]
    now[0] += 0.5
    assert rates.take("a") == 0
    assert rates.take("a") == pytest.approx(0.5)
    for key in "bcde":
        rates.take(key)
    assert len(rates._buckets) == 3


def test_the_sdk_waits_when_it_asks_too_often(
    server: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    from updraft.sdk.client import Client

    monkeypatch.setenv("UPDRAFT_URL", server.url)
    monkeypatch.setenv("UPDRAFT_TOKEN", server.tokens["ben"])
    monkeypatch.setenv("UPDRAFT_FINGERPRINT", server.fingerprint)
    begun = time.monotonic()
    with Client() as client:
        for _ in range(260):
            list(client.jobs(limit=1))
    assert time.monotonic() - begun > 1
