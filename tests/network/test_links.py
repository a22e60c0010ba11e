"""Links: what they do to packets is what was asked for, and no more."""

import contextlib
import random
import socket
import time
from collections.abc import Iterator

import pytest

from tests.network import FAR, LAN, Conditions, Host, Link, Network, NetworkError
from tests.network.link import Way
from tests.network.sockets import (
    connected,
    pouring,
    received_numbers,
    round_trip,
    send_numbered,
    udp,
)
from tests.waiting import until

BOTH_KINDS = pytest.mark.parametrize("emulated", [True, False], ids=["emulated", "plain"])


@pytest.fixture
def pair(network: Network) -> tuple[Host, Host]:
    """A client behind an emulated link, and a server."""
    return network.host("client", emulated=True), network.host("server")


@pytest.fixture
def ends(pair: tuple[Host, Host]) -> Iterator[tuple[socket.socket, socket.socket]]:
    client, server = pair
    with udp(client) as near, udp(server) as far:
        yield near, far


def test_a_round_trip_takes_the_delays_of_both_directions(
    pair: tuple[Host, Host], ends: tuple[socket.socket, socket.socket]
) -> None:
    link = pair[0].link
    lan = round_trip(*ends)
    link.set(delay_ms=40)
    near = min(round_trip(*ends) for _ in range(3))
    link.set(delay_ms=150, direction="down")
    far = min(round_trip(*ends) for _ in range(3))
    link.apply(LAN)
    again = min(round_trip(*ends) for _ in range(3))

    assert near >= 0.080
    assert far >= 0.190
    assert max(lan, again) < 10  # no bound on a busy machine; the order of them is the claim
    assert again < near < far


def test_a_delay_that_gets_shorter_reorders_nothing(
    pair: tuple[Host, Host], ends: tuple[socket.socket, socket.socket]
) -> None:
    pair[0].link.set(delay_ms=300)
    ends[0].sendto((0).to_bytes(4, "big"), ends[1].getsockname())
    until(lambda: pair[0].link.counters()["up"].packets == 0)
    pair[0].link.set(delay_ms=0)
    ends[0].sendto((1).to_bytes(4, "big"), ends[1].getsockname())

    assert received_numbers(*ends) == [0, 1]


def test_loss_is_near_its_probability_and_keeps_the_order(
    pair: tuple[Host, Host], ends: tuple[socket.socket, socket.socket]
) -> None:
    count = 0
    arrived = []
    for _ in range(10):
        count += 300
        arrived += _through_loss(pair[0], *ends, count=300, loss=0.1)

    assert 0.07 * count < count - len(arrived) < 0.13 * count  # 5 standard deviations: 0.027
    assert count - len(arrived) == pair[0].link.counters()["up"].lost
    assert pair[0].link.counters()["down"].lost == 0


def test_a_seed_replays_the_losses() -> None:
    def losses(seed: int) -> list[int]:
        with Network(seed) as network:
            client, server = network.host("client", emulated=True), network.host("server")
            with udp(client) as near, udp(server) as far:
                return _through_loss(client, near, far, count=100, loss=0.5)

    assert losses(1) == losses(1) != losses(2)


def _through_loss(
    client: Host, near: socket.socket, far: socket.socket, *, count: int, loss: float
) -> list[int]:
    """Send so many datagrams upwards; the numbers of those that arrived, in their order."""

    def taken() -> int:
        up = client.link.counters()["up"]
        return up.packets + up.lost

    before = taken()
    client.link.set(loss=loss, direction="up")
    send_numbered(near, far, count)
    # What is in the kernel's queue must meet the loss too, so the change waits for it.
    until(lambda: taken() == before + count)
    client.link.set(loss=0)
    arrived = received_numbers(near, far)
    assert arrived == sorted(set(arrived))
    return arrived


@pytest.mark.parametrize("way", ["up", "down"])
def test_tcp_gets_most_of_a_rate_and_never_more(pair: tuple[Host, Host], way: Way) -> None:
    rate, queue = 1_000_000, 100_000
    client, server = pair
    client.link.set(rate_bytes=rate, queue_bytes=queue, direction=way)
    sender, receiver = connected(*(pair if way == "up" else (server, client)))
    taken = 0
    with sender, receiver, pouring(sender):
        receiver.recv(1)
        began = time.monotonic()
        while time.monotonic() - began < 2:
            taken += len(receiver.recv(65536))
        seconds = time.monotonic() - began
        receiver.shutdown(socket.SHUT_RDWR)
        receiver.close()

    # At the start there may be some that the receiver's kernel held already.
    assert taken <= rate * seconds + queue
    assert taken > 0.6 * rate * seconds


def test_a_full_queue_drops_what_comes(
    pair: tuple[Host, Host], ends: tuple[socket.socket, socket.socket]
) -> None:
    link = pair[0].link
    link.set(rate_bytes=10_000, queue_bytes=5_000, direction="up")
    began = time.monotonic()
    for _ in range(100):
        ends[0].sendto(bytes(972), ends[1].getsockname())  # 1,000 with the headers
    until(lambda: link.counters()["up"].overflowed >= 50)
    up = link.counters()["up"]

    assert up.packets <= 1 + (time.monotonic() - began) * 10
    # At most the queue and the packet on the wire are still under way, so all is accounted for.
    until(lambda: _gone(link) >= 94)
    assert up.lost == up.blocked == 0


def _gone(link: Link) -> int:
    up = link.counters()["up"]
    return up.packets + up.overflowed


@BOTH_KINDS
@pytest.mark.parametrize("cut", ["up", "down"])
def test_a_cut_in_one_direction_lets_the_other_pass(
    network: Network, emulated: bool, cut: Way
) -> None:
    client, server = network.host("client", emulated=emulated), network.host("server")
    with udp(client) as near, udp(server) as far:
        from_client, from_server = (near, far), (far, near)
        blocked, passing = (from_client, from_server) if cut == "up" else (from_server, from_client)
        before = client.link.counters()
        client.link.cut(cut)
        send_numbered(*blocked, 10)
        send_numbered(*passing, 10)
        assert received_numbers(*passing) == list(range(10))
        until(lambda: client.link.counters()[cut].blocked >= 10)
        client.link.heal()
        assert received_numbers(*blocked) == []

    after = client.link.counters()
    other: Way = "down" if cut == "up" else "up"
    assert after[other].blocked == 0
    assert after[other].packets - before[other].packets == 11
    assert after[cut].packets - before[cut].packets == 1


@BOTH_KINDS
def test_a_direction_may_be_healed_alone(network: Network, emulated: bool) -> None:
    client, server = network.host("client", emulated=emulated), network.host("server")
    with udp(client) as near, udp(server) as far:
        client.link.cut()
        client.link.heal("up")
        send_numbered(far, near, 1)
        send_numbered(near, far, 1)
        assert received_numbers(near, far) == [0]
        until(lambda: client.link.counters()["down"].blocked)  # others may be on their way too
        client.link.heal()
        assert received_numbers(far, near) == []


def test_what_is_under_way_is_lost_in_a_cut(
    pair: tuple[Host, Host], ends: tuple[socket.socket, socket.socket]
) -> None:
    link = pair[0].link
    link.set(delay_ms=60_000)
    send_numbered(*ends, 1)
    # Taken in by the link, since the next ones are counted behind it.
    link.cut("up")
    send_numbered(*ends, 1)
    until(lambda: link.counters()["up"].blocked == 2)
    link.set(delay_ms=0)
    link.heal()

    assert received_numbers(*ends) == []


@BOTH_KINDS
def test_a_connection_survives_a_cut_of_three_seconds_without_losing_a_byte(
    network: Network, emulated: bool
) -> None:
    client, server = network.host("client", emulated=emulated), network.host("server")
    sent = random.Random(3).randbytes(8 << 20)
    got = bytearray()
    dialled, accepted = connected(client, server)
    with dialled, accepted, pouring(dialled, sent):
        while len(got) < 1 << 20:
            got += accepted.recv(65536)
        client.link.cut()
        began = time.monotonic()
        accepted.settimeout(3)
        with contextlib.suppress(TimeoutError):  # what had arrived, then silence
            while piece := accepted.recv(65536):
                got += piece
        assert len(got) < len(sent)
        assert time.monotonic() - began >= 3
        client.link.heal()
        accepted.settimeout(60)
        while piece := accepted.recv(65536):
            got += piece

    assert got == sent


def test_a_far_host_gets_its_bytes_whole_through_delay_loss_and_a_rate(network: Network) -> None:
    far, server = network.host("far", FAR), network.host("server")
    sent = random.Random(4).randbytes(300_000)
    began = time.monotonic()
    dialled, accepted = connected(far, server)
    with dialled, accepted, pouring(dialled, sent):
        got = b"".join(iter(lambda: accepted.recv(65536), b""))

    assert got == sent
    assert time.monotonic() - began >= 0.3 + 0.2  # a round trip to connect, and the rate


def test_conditions_that_are_not_named_stay(
    pair: tuple[Host, Host], ends: tuple[socket.socket, socket.socket]
) -> None:
    pair[0].link.set(delay_ms=50)
    pair[0].link.set(rate_bytes=10_000_000)
    pair[0].link.cut()
    pair[0].link.heal()

    assert round_trip(*ends) >= 0.1


def test_the_links_of_two_hosts_add_up(network: Network) -> None:
    near = network.host("client", Conditions(delay_ms=20))
    other = network.host("server", Conditions(delay_ms=30))
    with udp(near) as one, udp(other) as two:
        assert round_trip(one, two) >= 0.1


@pytest.mark.parametrize(
    ("name", "value"), [("loss", 1.1), ("loss", -0.1), ("delay_ms", -1), ("rate_bytes", -1)]
)
def test_impossible_conditions_are_refused(
    pair: tuple[Host, Host], name: str, value: float
) -> None:
    with pytest.raises(ValueError, match=r"probability|negative"):
        pair[0].link.set(**{name: value})  # type: ignore[arg-type]


def test_a_plain_link_refuses_what_it_cannot_do(network: Network) -> None:
    host = network.host("client")
    host.link.apply(LAN)
    with pytest.raises(NetworkError, match="emulated=True"):
        host.link.set(delay_ms=1)
    with pytest.raises(NetworkError, match="only an emulated link"):
        network.host("other", FAR, emulated=False)
