"""What tasks wrote, as it comes from the server: frames in, pieces out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from updraft.wire import frames


@dataclass(frozen=True, slots=True)
class AttemptBegins:
    """The output that follows is of this attempt."""

    attempt: int
    task: int | None = None
    """Of an array whose tasks are all asked for: whose attempt it is."""


@dataclass(frozen=True, slots=True)
class Output:
    """Bytes that a task wrote to stdout (1) or stderr (2)."""

    attempt: int
    stream: int
    data: bytes | memoryview
    task: int | None = None


@dataclass(frozen=True, slots=True)
class Cut:
    """So many bytes of the stream are not stored: it was over its quota."""

    attempt: int
    stream: int
    count: int
    task: int | None = None


LogPiece = AttemptBegins | Output | Cut


class LogReading:
    """Turns the frames of a job's output into pieces, and knows how far it got.

    What a server tells once more after a break, of all tasks of an array, is passed over.
    """

    def __init__(self) -> None:
        self.attempt = 0
        """The one that is being read; 0: none, or those of several tasks."""
        self._got: dict[int, int] = {}
        self._tasks: dict[int, tuple[int, int]] = {}
        self._told: dict[tuple[int, int], int] = {}
        self._reader = frames.FrameReader()

    def feed(self, chunk: bytes) -> Iterator[LogPiece]:
        """Yield what these bytes of the answer tell."""
        for kind, channel, offset, payload in self._reader.feed(chunk):
            attempt, stream = channel >> 2, channel & 3
            if kind == frames.GREW and payload:
                index, _, number = bytes(payload).decode().partition(".")
                if attempt not in self._tasks:
                    self._tasks[attempt] = (int(index), int(number))
                    yield AttemptBegins(int(number), int(index))
            if attempt in self._tasks:
                yield from self._of_task(kind, attempt, stream, offset, payload)
                continue
            if attempt != self.attempt:
                self.attempt, self._got = attempt, {}
                yield AttemptBegins(attempt)
            at = self._got.setdefault(stream, offset)
            if offset > at:
                yield Cut(attempt, stream, offset - at)
            self._got[stream] = offset + len(payload)
            if kind == frames.DATA and payload:
                yield Output(attempt, stream, payload)

    def _of_task(
        self, kind: int, attempt: int, stream: int, offset: int, payload: bytes | memoryview
    ) -> Iterator[LogPiece]:
        index, number = self._tasks[attempt]
        told = self._told.get((attempt, stream), 0)
        if offset > told and kind != frames.GREW:
            yield Cut(number, stream, offset - told, index)
        if kind == frames.DATA:
            new = memoryview(payload)[max(told - offset, 0) :]
            if new:
                yield Output(number, stream, new, index)
            self._told[attempt, stream] = max(told, offset + len(payload))

    def interrupted(self) -> None:
        """The answer broke off: what comes next is another's beginning."""
        self._reader = frames.FrameReader()

    def position(self) -> dict[str, int]:
        """Return where to go on, as parameters of a new request."""
        return {
            "attempt": self.attempt,
            "stdout": self._got.get(frames.STDOUT, 0),
            "stderr": self._got.get(frames.STDERR, 0),
        }
