"""Back-off: free tries, doubling waits, forgetting, and bounded memory."""

import pytest

from updraft import errors
from updraft.server.auth.backoff import Backoff, network_of


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def waits(backoff: Backoff, key: str) -> str:
    try:
        backoff.check(key)
    except errors.TooManyRequests as error:
        return error.message.rpartition("again in ")[2]
    return ""


def test_waits_double_up_to_the_longest_and_end() -> None:
    clock = Clock()
    backoff = Backoff(free=2, longest_seconds=5, clock=clock)
    seen = []
    for _ in range(6):
        seen.append(waits(backoff, "anna"))
        clock.now += 5
        backoff.failed("anna")
    assert seen == ["", "", "1 s", "2 s", "4 s", "5 s"]
    clock.now += 5
    assert waits(backoff, "anna") == ""


def test_one_key_s_failures_are_not_another_s() -> None:
    backoff = Backoff(free=1, longest_seconds=60, clock=Clock())
    backoff.failed("anna")
    assert waits(backoff, "anna") == "1 s"
    assert waits(backoff, "ben") == ""


def test_success_forgets_and_quiet_forgets() -> None:
    clock = Clock()
    backoff = Backoff(free=1, longest_seconds=60, clock=clock)
    for _ in range(4):
        backoff.failed("anna")
    backoff.succeeded("anna")
    assert waits(backoff, "anna") == ""
    for _ in range(4):
        backoff.failed("anna")
    clock.now += 601
    backoff.failed("anna")
    assert waits(backoff, "anna") == "1 s"


def test_memory_is_bounded_and_the_oldest_go() -> None:
    backoff = Backoff(free=1, longest_seconds=60, clock=Clock(), max_keys=100)
    for number in range(1000):
        backoff.failed(f"name-{number}")
    assert len(backoff._failures) == 100
    assert waits(backoff, "name-999") == "1 s"


@pytest.mark.parametrize(
    ("peer", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::ffff:1%eth0", "2001:db8::/64"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("", ""),
        ("testclient", "testclient"),
    ],
)
def test_one_host_of_ipv6_is_one_peer_whatever_address_it_takes(peer: str, network: str) -> None:
    assert network_of(peer) == network
