"""The relay: each client gets its attempt's bytes whole, in order and once, whoever comes."""

from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from updraft.server.relay.relay import Attachment, Relay
from updraft.wire import frames

SERIAL = 7
OUT = frames.stream_channel(SERIAL, frames.STDOUT)
CONTENT = bytes(at % 251 for at in range(4000))


@dataclass
class Client:
    """A client's connection, and its control side."""

    number: int = 1
    start: int = 0
    got: bytearray = field(default_factory=bytearray)
    acknowledged: list[int] = field(default_factory=list)
    source: bool = True

    def send_stream(
        self, kind: int, channel: int, offset: int, payload: bytes | memoryview = b""
    ) -> None:
        assert channel >> 2 == self.number
        if kind == frames.DATA:
            assert offset == self.start + len(self.got), "a gap, or a repetition"
            self.got += payload
        elif kind == frames.ACK:
            self.acknowledged.append(offset)

    def send_message(self, kind: int, body: dict[str, object], channel: int = 0) -> None:
        raise AssertionError("the relay says nothing of its own to clients")

    def source_lost(self) -> None:
        self.source = False

    def source_back(self) -> None:
        self.source = True

    def behind(self) -> None:
        raise AssertionError("nothing was shipped")


@dataclass(eq=False)
class Runner:
    """An agent's data connection: what comes in is answered later, what goes out arrives later."""

    inbox: list[tuple[int, Any]] = field(default_factory=list)
    outbox: list[tuple[int, int, int, bytes]] = field(default_factory=list)
    sent: int | None = None

    def send_stream(
        self, kind: int, channel: int, offset: int, payload: bytes | memoryview = b""
    ) -> None:
        assert channel >> 2 == SERIAL
        self.inbox.append((kind, (channel & 3, offset, bytes(payload))))

    def send_message(self, kind: int, body: dict[str, object], channel: int = 0) -> None:
        assert channel >> 2 == SERIAL
        self.inbox.append((kind, body))

    def take_order(self) -> None:
        kind, body = self.inbox.pop(0)
        if kind == frames.ATTACH:
            self.sent = int(body["stdout"])
            self.outbox.append((frames.ATTACH, SERIAL << 2, 0, b""))
        elif kind == frames.DETACH:
            self.sent = None

    def produce(self, count: int) -> None:
        if self.sent is not None:
            data = CONTENT[self.sent : self.sent + count]
            self.outbox.append((frames.DATA, OUT, self.sent, data))
            self.sent += len(data)


class Relayed(RuleBasedStateMachine):
    """Clients come and go, runners too, and everything takes its time on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.relay = Relay()
        self.runner: Runner | None = Runner()
        self.client: Client | None = None
        self.attachment: Attachment | None = None
        self.clients: list[Client] = []
        self.relay.granted(SERIAL, self.runner)

    @rule(start=st.integers(0, 300))
    def attach(self, start: int) -> None:
        """A client attaches; one that was there is let go."""
        client = Client(start=start, source=self.runner is not None)
        attachment = Attachment(SERIAL, 1, client, client, [start, 0])
        assert self.relay.attach(attachment, ask=True) is self.attachment
        self.clients.append(client)
        self.client, self.attachment = client, attachment

    @precondition(lambda self: self.attachment is not None)
    @rule()
    def detach(self) -> None:
        assert self.attachment is not None
        self.relay.detach(self.attachment)
        self.client = self.attachment = None

    @precondition(lambda self: self.runner is not None)
    @rule(count=st.integers(1, 200))
    def produce(self, count: int) -> None:
        assert self.runner is not None
        self.runner.produce(count)

    @precondition(lambda self: self.runner is not None and self.runner.inbox)
    @rule()
    def an_order_arrives(self) -> None:
        assert self.runner is not None
        self.runner.take_order()

    @precondition(lambda self: self.runner is not None and self.runner.outbox)
    @rule()
    def output_arrives(self) -> None:
        assert self.runner is not None
        self.relay.from_runner(*self.runner.outbox.pop(0))

    @precondition(lambda self: self.runner is not None)
    @rule()
    def the_runner_leaves(self) -> None:
        assert self.runner is not None
        self.relay.runner_left(self.runner)
        assert not self.relay.has_source(SERIAL)
        self.runner = None

    @precondition(lambda self: self.runner is None)
    @rule()
    def a_runner_joins(self) -> None:
        self.runner = Runner()
        self.relay.runner_joined([SERIAL], self.runner)

    @invariant()
    def clients_have_what_they_asked_for(self) -> None:
        for client in self.clients:
            assert client.got == CONTENT[client.start : client.start + len(client.got)]

    @invariant()
    def the_client_knows_whether_its_runner_is_there(self) -> None:
        if self.client is not None:
            assert self.client.source == (self.runner is not None)

    def teardown(self) -> None:
        """Once all is quiet, the client that stayed has all that there is."""
        if self.runner is None:
            self.a_runner_joins()
        assert self.runner is not None
        while self.runner.inbox:
            self.an_order_arrives()
        self.produce(5000)
        while self.runner.outbox:
            self.output_arrives()
        if self.client is not None:
            assert self.client.got == CONTENT[self.client.start :]


TestRelayed = Relayed.TestCase
TestRelayed.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


def test_what_is_under_way_to_an_earlier_client_is_not_the_next_ones() -> None:
    relay, runner, first, second = Relay(), Runner(), Client(), Client()
    relay.granted(SERIAL, runner)
    before = Attachment(SERIAL, 1, first, first, [0, 0])
    relay.attach(before, ask=True)
    runner.take_order()
    for _ in range(3):
        runner.produce(100)
    relay.from_runner(*runner.outbox.pop(0))
    relay.from_runner(*runner.outbox.pop(0))
    relay.detach(before)
    relay.attach(Attachment(SERIAL, 1, second, second, [0, 0]), ask=True)
    while runner.outbox or runner.inbox:
        while runner.outbox:
            relay.from_runner(*runner.outbox.pop(0))
        if runner.inbox:
            runner.take_order()
            runner.produce(150)
    assert first.got == CONTENT[:100]
    assert second.got == CONTENT[:150]


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 50)), max_size=10))
def test_what_a_client_has_is_passed_over(pieces: list[tuple[int, int]]) -> None:
    client = Client()
    attachment = Attachment(SERIAL, 1, client, client, [0, 0])
    for start, length in pieces:
        if start <= len(client.got):  # what lies behind a gap was cut: another case
            attachment.deliver(frames.STDOUT, start, CONTENT[start : start + length])
    assert client.got == CONTENT[: len(client.got)]
    assert attachment.forwarded == {frames.STDOUT: len(client.got), frames.STDERR: 0}


def test_input_reaches_the_runner_of_its_attempt_only() -> None:
    relay, runner, first, second = Relay(), Runner(), Client(number=1), Client(number=2)
    relay.granted(SERIAL, runner)
    before = Attachment(SERIAL - 1, 1, first, first, [0, 0])
    now = Attachment(SERIAL, 2, second, second, [0, 0])
    relay.attach(before, ask=False)
    relay.attach(now, ask=False)
    typed = frames.stream_channel(2, frames.STDIN)
    relay.from_client(now, frames.DATA, typed, 0, b"typed")
    # An earlier attempt's frames, and those of a client that was let go, go nowhere.
    relay.from_client(now, frames.DATA, frames.stream_channel(1, frames.STDIN), 5, b"stale")
    relay.from_client(before, frames.DATA, frames.stream_channel(1, frames.STDIN), 0, b"stale")
    replacing = Attachment(SERIAL, 2, first, first, [0, 0])
    assert relay.attach(replacing, ask=False) is now
    relay.from_client(now, frames.DATA, typed, 5, b"late")
    assert runner.inbox == [(frames.DATA, (frames.STDIN, 0, b"typed"))]
    relay.detach(now)
    assert len(runner.inbox) == 1, "who was replaced lets nothing go"


def test_input_that_was_under_way_as_its_runner_came_back_is_not_taken_for_sent() -> None:
    relay, before, after, client = Relay(), Runner(), Runner(), Client()
    relay.granted(SERIAL, before)
    attachment = Attachment(SERIAL, 1, client, client, [0, 0])
    relay.attach(attachment, ask=False)
    typed = frames.stream_channel(1, frames.STDIN)
    stdin = frames.stream_channel(SERIAL, frames.STDIN)
    relay.from_client(attachment, frames.DATA, typed, 0, b"0123")
    relay.runner_left(before)
    relay.from_client(attachment, frames.DATA, typed, 4, b"45")
    relay.runner_joined([SERIAL], after)
    # The client has not heard of it yet, and sends on …
    relay.from_client(attachment, frames.DATA, typed, 6, b"67")
    relay.from_runner(frames.ACK, stdin, 2, b"")
    relay.from_client(attachment, frames.DATA, typed, 8, b"89")
    # … and then from where the runner said, in pieces.
    relay.from_client(attachment, frames.DATA, typed, 2, b"234567")
    relay.from_client(attachment, frames.DATA, typed, 2, b"234567")
    relay.from_client(attachment, frames.DATA, typed, 8, b"89")
    sent = [order[1:] for kind, order in after.inbox if kind == frames.DATA]
    assert sent == [(2, b"234567"), (8, b"89")]


def test_a_client_closes_no_stream_but_its_outputs() -> None:
    relay, runner, client = Relay(), Runner(), Client()
    relay.granted(SERIAL, runner)
    attachment = Attachment(SERIAL, 1, client, client, [0, 0])
    relay.attach(attachment, ask=False)
    for stream in range(4):
        relay.from_client(attachment, frames.CLOSE, frames.stream_channel(1, stream), 0, b"")
    assert [order[0] for _, order in runner.inbox] == [frames.STDOUT, frames.STDERR]


def test_an_attempt_that_ended_is_let_go_with_its_client() -> None:
    relay, runner, client = Relay(), Runner(), Client()
    relay.granted(SERIAL, runner)
    relay.ended(SERIAL)
    assert not relay.has_source(SERIAL)
    relay.granted(SERIAL, runner)
    attachment = Attachment(SERIAL, 1, client, client, [0, 0])
    relay.attach(attachment, ask=False)
    relay.ended(SERIAL)
    relay.from_runner(frames.DATA, OUT, 0, b"still under way")
    assert client.got == b"still under way"
    relay.detach(attachment)
    assert not relay.has_source(SERIAL)
