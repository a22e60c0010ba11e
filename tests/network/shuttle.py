"""One emulated link: carry packets between two TUN devices, with delay, loss, a rate, and cuts.

Run as `python -I -S shuttle.py OWNER UP DOWN SEED`: the process to end with, the descriptors of the
host's and of the router's device, and the seed of the losses; standard input is a packet socket on
which each request is a JSON object, answered when it holds.

Each direction is a queue in front of a wire, like a router's: a packet waits until the wire is free
(it is busy for length ÷ rate with each), is dropped if the queue is full, and arrives when the
delay is over.

Standard library, and no import of the suite: it has to start in a few milliseconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import socket
import sys
import time
from collections import deque

BATCH = 64
"""Packets of one direction before the other is looked at."""

IN_FLIGHT_BYTES = 64 << 20
"""What may be on a wire without a rate: a bound for memory, not a part of the emulation."""


class Direction:
    """One direction: what it does to packets, those that are under way, and what it counted."""

    def __init__(self, source: int, sink: int, seed: str) -> None:
        self.source = source
        self.sink = sink
        self.delay_seconds = 0.0
        self.loss = 0.0
        self.rate_bytes = 0.0  # 0: no limit
        self.queue_bytes = 0
        self.cut = False
        self.counted = {"packets": 0, "bytes": 0, "lost": 0, "overflowed": 0, "blocked": 0}
        self.line: deque[tuple[float, bytes]] = deque()
        self._line_bytes = 0
        self._free_at = 0.0
        self._random = random.Random(seed)

    def change(self, conditions: dict[str, float]) -> None:
        """Take on new conditions, or a cut, which loses what is under way."""
        for name, value in conditions.items():
            setattr(self, name, value)
        if self.cut:
            self.counted["blocked"] += len(self.line)
            self.line.clear()
            self._line_bytes = 0
            self._free_at = 0.0

    def read(self) -> None:
        """Take in what the source's kernel has sent."""
        read, source = os.read, self.source
        plain = not (self.delay_seconds or self.loss or self.rate_bytes or self.cut or self.line)
        for _ in range(BATCH):
            try:
                packet = read(source, 65536)
            except BlockingIOError:
                return
            if plain:
                self._deliver(packet)
            else:
                self._enqueue(packet)

    def _enqueue(self, packet: bytes) -> None:
        if self.cut:
            self.counted["blocked"] += 1
            return
        # Thrown for every packet, so that a seed's losses are the same whatever the rate.
        if self._random.random() < self.loss:
            self.counted["lost"] += 1
            return
        now = time.monotonic()
        due = now
        if self.rate_bytes:
            start = max(now, self._free_at)
            if (start - now) * self.rate_bytes + len(packet) > self.queue_bytes:
                self.counted["overflowed"] += 1
                return
            due = self._free_at = start + len(packet) / self.rate_bytes
        if self._line_bytes + len(packet) > IN_FLIGHT_BYTES:
            self.counted["overflowed"] += 1
            return
        due += self.delay_seconds
        if self.line:  # a delay that got shorter reorders nothing
            due = max(due, self.line[-1][0])
        self.line.append((due, packet))
        self._line_bytes += len(packet)

    def deliver_due(self, now: float) -> float | None:
        """Deliver what has arrived by now; tell when the next packet arrives."""
        line = self.line
        while line and line[0][0] <= now:
            packet = line.popleft()[1]
            self._line_bytes -= len(packet)
            self._deliver(packet)
        return line[0][0] if line else None

    def _deliver(self, packet: bytes) -> None:
        counted = self.counted
        counted["packets"] += 1
        counted["bytes"] += len(packet)
        with contextlib.suppress(OSError):  # the device is down, or its kernel's queue is full
            os.write(self.sink, packet)


def carry(owner: int, up: Direction, down: Direction, control: socket.socket) -> None:
    """Carry packets and obey until the owner has hung up or died."""
    directions = {"up": up, "down": down}
    sources = {up.source: up, down.source: down}
    control_fd, death = control.fileno(), os.pidfd_open(owner)
    watched = [*sources, control_fd, death]
    due: list[float] = []
    while True:
        timeout = max(0.0, min(due) - time.monotonic()) if due else None
        ready, _, _ = select.select(watched, [], [], timeout)
        for fd in ready:  # packets first: what was sent before a change meets the old conditions
            if fd in sources:
                sources[fd].read()
        if death in ready:
            return
        if control_fd in ready:
            if not (message := control.recv(65536)):
                return
            for name, conditions in json.loads(message).items():
                directions[name].change(conditions)
            value = {name: direction.counted for name, direction in directions.items()}
            control.send(json.dumps({"value": value}).encode())
        now = time.monotonic()
        due = [at for at in (up.deliver_due(now), down.deliver_due(now)) if at is not None]


def main(owner: int, host: int, router: int, seed: str) -> None:
    up = Direction(host, router, f"{seed} up")
    down = Direction(router, host, f"{seed} down")
    with socket.socket(fileno=0) as control, contextlib.suppress(ConnectionError):
        carry(owner, up, down, control)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
