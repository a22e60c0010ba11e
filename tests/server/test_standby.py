"""What a server says while another one serves."""

import json

import pytest

from updraft.server.standby import REASON, answer_to


@pytest.mark.parametrize(
    ("line", "status", "body"),
    [
        (b"GET /healthz HTTP/1.1", 200, "ok\n"),
        (b"GET /readyz?verbose HTTP/1.1", 503, f"not ready: {REASON}\n"),
        (b"HEAD /healthz HTTP/1.1", 200, ""),
    ],
)
def test_it_lives_and_is_not_ready(line: bytes, status: int, body: str) -> None:
    head, _, said = answer_to(line, "it stands by").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert said.decode() == body


@pytest.mark.parametrize("line", [b"GET /api/v1/jobs HTTP/1.1", b"POST / HTTP/1.1", b"", b"\xff x"])
def test_everything_else_is_refused(line: bytes) -> None:
    head, _, said = answer_to(line, "it stands by").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert json.loads(said)["error"]["code"] == "standing_by"
