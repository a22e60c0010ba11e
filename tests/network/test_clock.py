"""Clocks that jump: the wall clock does, in programs that run, and nothing else does."""

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.network import Host, Network, NetworkError, unavailable

HOUR = 3600
SLACK = 60
"""Far less than a jump, far more than a program takes."""

# Answers each line with what its clocks say, and how long its waits were.
PROGRAM = """
import asyncio, datetime, sys, threading, time
for line in sys.stdin:
    walls = [time.time(), datetime.datetime.now().timestamp(), time.time_ns() / 1e9]
    began = time.monotonic()
    time.sleep(0.05)
    threading.Event().wait(0.05)
    asyncio.run(asyncio.sleep(0.05))
    print(min(walls), max(walls), time.monotonic(), time.monotonic() - began, flush=True)
"""


@pytest.fixture
def moody(network: Network) -> Host:
    if reason := unavailable(clock=True):
        pytest.skip(reason)
    return network.host("moody", clock=True)


@pytest.fixture
def program(moody: Host) -> Iterator["subprocess.Popen[str]"]:
    with moody.popen(
        [sys.executable, "-u", "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as running:
        yield running
        assert running.stdin
        running.stdin.close()
        assert running.wait(10) == 0


def _clocks(program: "subprocess.Popen[str]") -> tuple[float, float, float, float]:
    assert program.stdin
    assert program.stdout
    program.stdin.write("\n")
    program.stdin.flush()
    low, high, monotonic, waited = map(float, program.stdout.readline().split())
    return low, high, monotonic, waited


def test_the_wall_clock_jumps_in_a_program_that_runs(
    moody: Host, program: "subprocess.Popen[str]"
) -> None:
    for jump in (0, HOUR, -24 * HOUR, 0.5, 10 * 365 * 24 * HOUR, 0):
        moody.clock_offset(jump)
        low, high, _, _ = _clocks(program)

        assert abs(low - time.time() - jump) < SLACK
        assert abs(high - time.time() - jump) < SLACK


def test_the_monotonic_clock_and_waits_stay_as_they_are(
    moody: Host, program: "subprocess.Popen[str]"
) -> None:
    for jump in (HOUR, -HOUR):
        moody.clock_offset(jump)
        _, _, monotonic, waited = _clocks(program)

        assert abs(monotonic - time.monotonic()) < SLACK
        assert 0.15 <= waited < SLACK


def test_what_a_program_starts_has_its_clock_whoever_it_runs_as(moody: Host) -> None:
    moody.clock_offset(-24 * HOUR)
    asked = moody.run(["sh", "-c", "date +%s"], uid=65534)

    assert abs(int(asked.stdout) - time.time() + 24 * HOUR) < SLACK


def test_other_hosts_keep_the_system_s_clock(network: Network, moody: Host) -> None:
    moody.clock_offset(HOUR)
    other = network.host("other")

    assert abs(int(other.run(["date", "+%s"]).stdout) - time.time()) < SLACK
    assert abs(int(moody.run(["date", "+%s"]).stdout) - time.time() - HOUR) < SLACK
    with pytest.raises(NetworkError, match="clock=True"):
        other.clock_offset(HOUR)
