"""An agent that only speaks frames with its keeper, so that a test can say and see anything."""

import os
import select
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from tests.waiting import SECONDS
from updraft.storage.segments import SegmentReader
from updraft.wire import frames
from updraft.wire.packing import unpack_dict
from updraft.wire.sockets import as_standard, connect_unix

T = TypeVar("T")


class HungUp(AssertionError):
    """The keeper closed the connection."""


class BareAgent:
    """One connection to a keeper, and all that came over it."""

    def __init__(self, keeper_socket: Path, *, greet: bool = True) -> None:
        self._peer = as_standard(connect_unix(str(keeper_socket)))
        self._reader = frames.FrameReader()
        self.closed = False
        self.report: dict[str, Any] = {}
        self.attempts: dict[int, dict[str, Any]] = {}
        """What the REPORT said of each attempt."""
        self.started: dict[int, dict[str, Any]] = {}
        self.ends: dict[int, dict[str, Any]] = {}
        self.grown: dict[int, int] = {}
        """Lengths of output streams, by channel."""
        self.taken: dict[int, int] = {}
        """Acknowledged input, by channel."""
        self.said: list[tuple[int, int]] = []
        """(kind, attempt) of every other frame."""
        if greet:
            self.send(frames.HELLO, body={"pid": os.getpid()})
            try:
                self.until(lambda: self.report)
            except HungUp:
                self.close()
                raise

    # -- what the agent says

    def send_bytes(self, data: bytes) -> None:
        """Send anything; a keeper that hangs up meanwhile is no error here."""
        try:
            self._peer.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            self.closed = True

    def send(
        self,
        kind: int,
        attempt: int = 0,
        stream: int = 0,
        *,
        at: int = 0,
        data: bytes = b"",
        body: dict[str, Any] | None = None,
    ) -> None:
        """Send a frame."""
        channel = frames.stream_channel(attempt, stream)
        if body is not None:
            self.send_bytes(frames.message(kind, body, channel))
        else:
            self.send_bytes(frames.frame(kind, channel, at, data))

    def spawn(self, attempt: int, spec: dict[str, Any]) -> None:
        """Order an attempt to be started."""
        self.send(frames.SPAWN, attempt, body=spec)

    def close(self) -> None:
        """Go away."""
        self._peer.close()
        self.closed = True

    # -- what it hears

    def until(self, seen: Callable[[], T], seconds: float = SECONDS) -> T:
        """Receive until there is something true to see, and return it."""
        deadline = time.monotonic() + seconds
        while not (value := seen()):
            left = deadline - time.monotonic()
            if self.closed:
                raise HungUp(f"{self.started=} {self.ends=} {self.grown=}")
            if left <= 0:
                seen_so_far = f"{self.started=} {self.ends=} {self.grown=}"
                raise AssertionError(f"waited {seconds:g} s; {seen_so_far}")
            self.receive(left)
        return value

    def receive(self, seconds: float) -> bool:
        """Take in what comes within a time; return whether anything did."""
        if not select.select([self._peer], [], [], seconds)[0]:
            return False
        try:
            chunk = self._peer.recv(1 << 16)
        except ConnectionResetError:
            chunk = b""
        if not chunk:
            self.closed = True
        for kind, channel, offset, payload in self._reader.feed(chunk):
            self._take(kind, channel, offset, bytes(payload))
        return True

    def _take(self, kind: int, channel: int, offset: int, payload: bytes) -> None:
        attempt = channel >> 2
        if kind == frames.REPORT:
            self.report = unpack_dict(payload)
            self.attempts = {each["attempt"]: each for each in self.report["attempts"]}
        elif kind == frames.STARTED:
            assert attempt not in self.started, "started twice"
            self.started[attempt] = unpack_dict(payload)
        elif kind == frames.EXITED:
            assert attempt not in self.ends, "ended twice"
            self.ends[attempt] = unpack_dict(payload)
        elif kind == frames.STARTS:
            for serial, pid, at in unpack_dict(payload)["starts"]:
                assert serial not in self.started, "started twice"
                self.started[serial] = {"pid": pid, "at": at}
        elif kind == frames.ENDS:
            for serial, end in unpack_dict(payload)["ends"]:
                assert serial not in self.ends, "ended twice"
                self.ends[serial] = end
        elif kind == frames.GREW:
            assert offset >= self.grown.get(channel, 0), "shrank"
            self.grown[channel] = offset
        elif kind == frames.ACK:
            assert offset >= self.taken.get(channel, 0), "was taken back"
            self.taken[channel] = offset
        else:
            self.said.append((kind, attempt))

    def wait_started(self, attempt: int) -> int:
        """Wait until an attempt runs; return its process id."""
        self.until(lambda: attempt in self.started or attempt in self.ends)
        return int(self.started[attempt]["pid"])

    def wait_end(self, attempt: int) -> dict[str, Any]:
        """Wait until an attempt has ended; return its end."""
        self.until(lambda: attempt in self.ends)
        return self.ends[attempt]

    def wait_output(self, attempt: int, stream: int, length: int) -> None:
        """Wait until an output stream has this length."""
        channel = frames.stream_channel(attempt, stream)
        self.until(lambda: self.grown.get(channel, 0) >= length)

    def wait_lines(self, attempt: int, spec: dict[str, Any], count: int) -> list[str]:
        """Wait until an attempt has written so many lines to its stdout; return them."""
        lines: list[str] = []

        def look() -> bool:
            lines[:] = output(spec).decode().split("\n")
            return len(lines) > count

        self.until(look)
        return lines[:count]


def output(spec: dict[str, Any], stream: int = frames.STDOUT) -> bytes:
    """All that is spooled of an output stream."""
    name = {frames.STDOUT: "stdout", frames.STDERR: "stderr"}[stream]
    parts = []
    with SegmentReader(os.fsdecode(spec["folder"]), name) as reader:
        position = 0
        while data := reader.read(position, 1 << 20)[1]:
            parts.append(data)
            position += len(data)
    return b"".join(parts)


def is_refused(peer: socket.socket, seconds: float = SECONDS) -> bool:
    """Whether the keeper hangs up on a connection without a word."""
    peer.settimeout(seconds)
    try:
        return peer.recv(1) == b""
    except ConnectionResetError:
        return True
