"""Frames by the million, frames that are none, and frames of somebody else's role."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.hostile.team import Frames, Team, ended, hello, submit
from tests.waiting import until
from updraft.wire import frames
from updraft.wire.packing import pack

SANE_SECONDS = 3.0
MEMORY = 64 << 20
"""By how much a flood may make the server grow."""

OUT = frames.stream_channel(1, frames.STDOUT)
IN = frames.stream_channel(1, frames.STDIN)
NOWHERE = {"job": "nosuch", "attempt": 1, "stdout": 0, "stderr": 0}
TINY = {
    "PING": frames.frame(frames.PING),
    "LIMIT": frames.frame(frames.LIMIT, OUT, 1 << 20),
    "empty DATA": frames.frame(frames.DATA, IN),
    "DATA of a byte": frames.frame(frames.DATA, IN, 0, b"x"),
    "no kind": frames.frame(250),
    "ATTACH": frames.message(frames.ATTACH, NOWHERE),
    "SIGNAL": frames.message(frames.SIGNAL, {"signal": 18}),
    "RESIZE": frames.message(frames.RESIZE, {"rows": 9, "columns": 9}),
}


@contextmanager
def flood_of(peer: Frames, data: bytes) -> Iterator[None]:
    """Send the same again and again for a ``with`` block, as long as the server takes it."""
    many = data * (1 + (1 << 18) // len(data))
    over = threading.Event()
    peer.peer.settimeout(None)

    def send() -> None:
        while not over.is_set() and peer.send(many):
            pass

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        with suppress(OSError):
            peer.peer.shutdown(socket.SHUT_RDWR)
        thread.join(10)


@pytest.mark.parametrize("kind", TINY)
def test_a_flood_slows_nobody_else_down(server: Team, kind: str) -> None:
    """Signed in, with a job that runs, on three connections at once."""
    before = server.resident_bytes()
    with ExitStack() as all_of_them:
        for _ in range(3):
            peer = all_of_them.enter_context(server.session("ben"))
            peer.send(submit("sleep", "60", stdin=True))
            assert peer.answers(frames.STARTED)[-1][0] == frames.STARTED
            all_of_them.enter_context(flood_of(peer, TINY[kind]))
        assert max(server.good() for _ in range(5)) < SANE_SECONDS
        assert server.resident_bytes() - before < MEMORY
    assert server.good() < SANE_SECONDS


@pytest.mark.parametrize("first", [b"", hello("updraft_user_guessed")])
def test_a_flood_before_sign_in_ends_at_once(server: Team, first: bytes) -> None:
    with Frames(server.tls()) as peer:
        peer.send(first + TINY["PING"] * 100_000)
        assert ended(peer.peer, 5) < 5


def test_input_that_the_task_has_no_room_for_ends_the_connection(server: Team) -> None:
    before = server.resident_bytes()
    with server.session("ben") as peer:
        peer.send(submit("sleep", "60", stdin=True))
        assert peer.answers(frames.STARTED)
        chunk, at = b"x" * frames.CHUNK_BYTES, 0
        deadline = time.monotonic() + 15
        # What comes behind the first that is too much is read by nobody, until the end.
        while peer.send(frames.frame(frames.DATA, IN, at, chunk)):
            at += len(chunk)
            assert time.monotonic() < deadline, "the server took it"
        assert server.resident_bytes() - before < MEMORY
    assert server.good() < SANE_SECONDS


def test_half_messages_of_many_connections_are_bounded(server: Team) -> None:
    before = server.resident_bytes()
    half = frames.HEADER.pack(frames.MAX_PAYLOAD, frames.SUBMIT, 0, 0) + b"x" * (15 << 20)
    peers = [server.session("ben") for _ in range(20)]
    try:
        for peer in peers:
            peer.send(half)
        assert server.resident_bytes() - before < 256 << 20
        assert server.good() < SANE_SECONDS
    finally:
        for peer in peers:
            peer.close()


@pytest.mark.parametrize(
    "body",
    [b"l" + b"le" * 7_000_000 + b"e", b"d" + b"s1:ale" * 2_500_000 + b"e", b"l" * 1_000_000],
    ids=["lists", "dicts", "nested"],
)
def test_a_message_does_not_grow_when_it_is_read(server: Team, body: bytes) -> None:
    before = server.resident_bytes()
    with server.session("ben") as peer:
        peer.send(frames.frame(frames.SUBMIT, payload=body))
        assert peer.answers(frames.ERROR)[-1][1]["code"] == "bad_request"
    assert server.resident_bytes() - before < 160 << 20


def edges() -> list[bytes]:
    """Frames whose lengths, offsets and channels are the least and the most that there are."""
    most = (1 << 64) - 1
    lengths = (0, 1, frames.MAX_PAYLOAD - 1, frames.MAX_PAYLOAD, frames.MAX_PAYLOAD + 1, 2**32 - 1)
    kinds = (frames.DATA, frames.SUBMIT, frames.LIMIT, frames.EOF, frames.CLOSE, 0, 255)
    return [
        frames.HEADER.pack(length, kind, channel, offset)
        for length in lengths
        for kind in kinds
        for channel, offset in ((0, 0), (4, most), (5, 1 << 63), (most, most))
    ]


def test_lengths_and_offsets_at_their_edges_end_only_their_connection(server: Team) -> None:
    for data in edges():
        with server.session("ben") as peer:
            peer.send(data)
    with server.session("ben") as peer:
        peer.send(submit("sleep", "30", stdin=True))
        peer.answers(frames.STARTED)
        for data in edges():
            if data[:4] == bytes(4):
                peer.send(data)
    assert server.good() < SANE_SECONDS


# -- roles


REFUSED: dict[str, Callable[[Team], bytes]] = {
    "a user as an agent": lambda server: hello(server.tokens["anna"], "agent"),
    "a user as an agent's data": lambda server: hello(
        server.tokens["anna"], "agent-data", session="x"
    ),
    "nobody as an agent": lambda server: hello("", "agent"),
    "nobody as a client": lambda server: hello(""),
    "a join token as a client": lambda server: hello(server.join_token()),
    "a join token as an agent": lambda server: hello(server.join_token(), "agent"),
    "no such role": lambda server: hello(server.tokens["ben"], "keeper"),
    "another project": lambda server: hello(server.tokens["ben"], project="nosuch"),
}


@pytest.mark.parametrize("how", REFUSED)
def test_a_credential_is_good_for_its_role_only(server: Team, how: str) -> None:
    with Frames(server.tls(), REFUSED[how](server)) as peer:
        kinds = peer.answers()
        assert [kind for kind, _ in kinds] == [frames.ERROR]


@pytest.mark.parametrize(
    "kind", [frames.REPORT, frames.STARTED, frames.EXITED, frames.SPAWN, frames.KILL, frames.STOP]
)
def test_a_client_that_sends_an_agents_frames_changes_nothing(server: Team, kind: int) -> None:
    with server.session("ben") as mine, server.session("vera") as other:
        mine.send(submit("sleep", "30", stdin=False))
        assert mine.answers(frames.STARTED)
        for serial in range(1, 60):
            other.send(frames.message(kind, {"status": 0, "pid": 1}, serial << 2))
            mine.send(frames.message(kind, {"status": 0, "pid": 1}, serial << 2))
        with server.http("ben") as client:
            # Its start is stored a moment after it.
            until(lambda: client.get("/jobs").json()["jobs"][0]["state"] == "RUNNING", "its start")
        mine.send(frames.message(frames.CANCEL, {}))
        assert dict(mine.answers(frames.ENDED))[frames.ENDED]["state"] == "CANCELLED"


def test_nobody_attaches_to_anothers_job(server: Team) -> None:
    server.add("carl", role="member") if "carl" not in server.tokens else None
    with server.session("ben") as mine:
        mine.send(submit("cat", stdin=True))
        job = dict(mine.answers(frames.STARTED))[frames.ACCEPTED]["job"]
        attach = {"job": job, "attempt": 1, "stdout": 0, "stderr": 0}
        for who in ("carl", "vera"):
            with server.session(who) as other:
                other.send(frames.message(frames.ATTACH, attach))
                other.send(frames.frame(frames.DATA, IN, 0, b"injected\n"))
                other.send(frames.message(frames.CANCEL, {}))
                kinds = [kind for kind, _ in other.answers(frames.ERROR)]
                assert kinds == [frames.ERROR], who
        mine.send(frames.frame(frames.EOF, IN, 0))
        end = dict(mine.answers(frames.ENDED))[frames.ENDED]
        assert (end["exit_code"], end["stdout"]) == (0, 0)


def test_a_second_hello_is_of_no_effect(server: Team) -> None:
    with server.session("vera") as peer:
        peer.send(hello(server.tokens["anna"]))
        peer.send(submit("true", stdin=False))
        assert peer.answers(frames.ERROR)[-1][1]["code"] == "not_allowed"


# -- anything at all


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=80),
            st.builds(
                lambda kind, channel, offset, body: frames.frame(kind, channel, offset, body),
                st.integers(0, 60),
                st.integers(0, 2**64 - 1) | st.integers(0, 12),
                st.integers(0, 2**64 - 1) | st.integers(0, 3),
                st.binary(max_size=40)
                | st.builds(
                    pack,
                    st.dictionaries(
                        st.sampled_from(["job", "signal", "rows", "columns", "argv", "session"]),
                        st.none() | st.integers(-5, 5) | st.binary(max_size=5),
                    ),
                ),
            ),
        ),
        max_size=8,
    ),
    st.sampled_from(["", "ben", "anna", "vera"]),
    st.sampled_from(["client", "exec", "agent", "agent-data"]),
)
def test_any_session_is_answered_or_ended(
    server: Team, sent: list[bytes], user: str, role: str
) -> None:
    token = server.tokens.get(user, "")
    with Frames(server.tls(), hello(token, role, session="x")) as peer:
        for data in sent:
            peer.send(data)
        # Something that is surely wrong, so that there is an end to wait for.
        peer.send(b"\xff" * 64)
        begun = time.monotonic()
        peer.answers(frames.ERROR)
        assert time.monotonic() - begun < 15
    assert server.alive()
