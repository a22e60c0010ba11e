"""The server's socket in hostile hands: each gets an answer or its end; others notice nothing."""

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from updraft.sdk.submission import submission
from updraft.testing.instance import Instance, instance
from updraft.wire import frames
from updraft.wire.packing import unpack_dict
from updraft.wire.sockets import as_standard, connect_unix

ANSWERS = {frames.ACCEPTED, frames.ERROR, frames.ENDED}
HELLO = {"role": "client", "wire": frames.WIRE_VERSION, "release": "0"}
ODD = (
    st.none()
    | st.booleans()
    | st.integers(-9, 2**63 - 1)
    | st.binary(max_size=9)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
    | st.lists(st.integers(0, 9), max_size=3)
    | st.dictionaries(st.sampled_from(["rows", "columns", "stderr"]), st.integers(0, 9))
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    with instance(tmp_path_factory.mktemp("door") / "home") as made:
        assert made.run("urun", "-q", "true").returncode == 0
        yield made
        assert made.run("urun", "-q", "sh", "-c", "exit 3").returncode == 3
        (pid,) = made.processes("server")
        log = (made.state / "server.log").read_text()
        assert log.count("serving at") == 1, "the server crashed and was started again"
        assert pid


def connect(server: Instance) -> socket.socket:
    peer = as_standard(connect_unix(str(server.state / "server.sock")))
    peer.settimeout(20)
    return peer


def answers(peer: socket.socket, *, until: frozenset[int]) -> list[tuple[int, dict[str, Any]]]:
    """All control frames up to one of these kinds, or to the connection's end."""
    reader = frames.FrameReader()
    found: list[tuple[int, dict[str, Any]]] = []
    while not found or found[-1][0] not in until:
        try:
            chunk = peer.recv(1 << 16)
        except ConnectionResetError:
            chunk = b""
        if not chunk:
            return found
        for kind, _, _, payload in reader.feed(chunk):
            if kind not in (frames.DATA, frames.ACK, frames.GREW, frames.CLOSE):
                found.append((kind, unpack_dict(bytes(payload)) if payload else {}))
    return found


def ask(server: Instance, *sent: bytes) -> list[tuple[int, dict[str, Any]]]:
    """Say hello and this; return what was answered."""
    with connect(server) as peer:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            peer.sendall(b"".join(sent))
        return answers(peer, until=frozenset({frames.ERROR, frames.ENDED}))


def submit(**changes: Any) -> bytes:
    body = {**submission([b"true"], attached=True), "cpus_milli": 0, **changes}
    return frames.message(frames.SUBMIT, body)


hello = frames.message(frames.HELLO, HELLO)


def test_a_job_by_hand(server: Instance) -> None:
    kinds = dict(ask(server, hello, submit(argv=[b"sh", b"-c", b"exit 3"])))
    assert kinds[frames.ENDED]["exit_code"] == 3


@settings(max_examples=40, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=60), min_size=1, max_size=3), st.booleans())
def test_random_bytes_are_answered_or_cut_off(
    server: Instance, sent: list[bytes], greet: bool
) -> None:
    with connect(server) as peer:
        with contextlib.suppress(OSError):
            peer.sendall(hello if greet else b"\0")
            for data in sent:
                peer.sendall(data)
            peer.shutdown(socket.SHUT_WR)
        answers(peer, until=frozenset())


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([frames.SUBMIT, frames.ATTACH]),
    st.dictionaries(st.sampled_from([*sorted(submission([b"x"], attached=True)), "job"]), ODD),
    st.booleans(),
)
def test_an_odd_request_is_answered(
    server: Instance, kind: int, body: dict[str, Any], complete: bool
) -> None:
    if complete and kind == frames.SUBMIT:
        start = {**submission([b"true"], attached=True), "cpus_milli": 0, "stdin": False}
        body = {**start, **body}
        # What would run for long, or be hard to get rid of, is another test's.
        body.update(attached=True, retries=0)
    said = ask(server, hello, frames.message(kind, body))
    assert said, "no answer"
    assert said[-1][0] in (frames.ERROR, frames.ENDED)
    if said[-1][0] == frames.ERROR:
        assert said[-1][1]["code"] in ("bad_request", "not_found", "internal")
        assert "\n" not in said[-1][1]["message"]


@pytest.mark.parametrize(
    "sent",
    [
        frames.message(frames.SUBMIT, {}),
        frames.frame(frames.SUBMIT),
        frames.frame(frames.SUBMIT, payload=b"garbage"),
        frames.message(frames.ATTACH, {"job": 5}),
        frames.message(frames.ATTACH, {"job": "no such"}),
        frames.message(frames.ATTACH, {}),
        frames.message(frames.SIGNAL, {"signal": "x"}),
        frames.message(frames.SIGNAL, {"signal": 2**40}),
        frames.message(frames.RESIZE, {"rows": 70000, "columns": 1}),
        frames.message(frames.RESIZE, {}),
        frames.HEADER.pack(2**25, frames.SUBMIT, 0, 0),
        hello,
    ],
)
def test_what_a_client_may_not_say_is_an_error(server: Instance, sent: bytes) -> None:
    said = ask(server, hello, sent, frames.message(frames.SIGNAL, {}))
    assert [kind for kind, _ in said] == [frames.ERROR]


@pytest.mark.parametrize(
    "first",
    [
        frames.message(frames.SUBMIT, {}),
        frames.message(frames.HELLO, {}),
        frames.message(frames.HELLO, {**HELLO, "wire": "x"}),
        frames.message(frames.HELLO, {**HELLO, "wire": 999}),
        frames.message(frames.HELLO, {**HELLO, "wire": -1}),
        frames.message(frames.HELLO, {**HELLO, "role": "nobody"}),
        frames.message(frames.HELLO, {**HELLO, "role": ["client"]}),
        frames.message(frames.HELLO, {**HELLO, "role": "agent"})
        + frames.message(frames.REPORT, {}),
        frames.message(frames.HELLO, {**HELLO, "role": "agent-data", "session": "guessed"}),
        frames.message(frames.HELLO, {**HELLO, "role": "agent-data", "session": ["x"]}),
    ],
)
def test_who_does_not_introduce_itself_is_cut_off(server: Instance, first: bytes) -> None:
    said = [each for each in ask(server, first) if each[0] != frames.WELCOME]
    assert [kind for kind, _ in said] == [frames.ERROR]
    assert said[0][1]["message"]


def test_the_same_key_twice_is_one_job(server: Instance) -> None:
    same = submit(key=b"k" * 16)
    first = dict(ask(server, hello, same))
    second = dict(ask(server, hello, same))
    assert first[frames.ACCEPTED] == second[frames.ACCEPTED]
    assert first[frames.ENDED] == second[frames.ENDED]


def test_many_who_say_nothing_keep_nobody_out(server: Instance) -> None:
    silent = [connect(server) for _ in range(300)]
    try:
        assert dict(ask(server, hello, submit()))[frames.ENDED]["exit_code"] == 0
    finally:
        for peer in silent:
            peer.close()


@pytest.mark.parametrize(
    ("role", "wire", "mend"),
    [
        ("client", 0, "the client 0; upgrade the client"),
        ("client", 999, "the client 999; restart it: updraft stop"),
        ("agent", 0, "the runner 0; upgrade the runner"),
        ("agent", 999, "the runner 999; upgrade the server"),
    ],
)
def test_who_speaks_another_version_is_told_what_to_do(
    server: Instance, role: str, wire: int, mend: str
) -> None:
    said = ask(server, frames.message(frames.HELLO, {**HELLO, "role": role, "wire": wire}))
    ours = f"the server speaks version {frames.WIRE_VERSION} of the protocol and "
    assert said == [(frames.ERROR, {"code": "wrong_version", "message": ours + mend})]
