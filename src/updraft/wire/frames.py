"""Frames: the unit of every raw connection (client, agent, keeper).  Standard library only.

A frame is a fixed header and a payload::

    length u32 | kind u8 | channel u64 | offset u64 | payload (length bytes)

*Control* frames carry a packed dict (``wire.packing``).  *Stream* frames carry a position: ``DATA``
its first byte's offset, ``LIMIT`` the offset up to which the peer may send, ``ACK`` the offset up
to which bytes were taken, ``GREW`` and ``EOF`` a stream's length.  Every position counts from the
stream's first byte, so any connection can be dropped and taken up again at a known place.

``channel`` is ``attempt × 4 + stream`` (0 stdin, 1 stdout, 2 stderr).  ``attempt`` is the attempt's
serial number on the server, which is also what fences frames of a stale attempt; between a client
and the server it is the attempt's number within the job.

The first byte of a connection tells frames from HTTP: a frame's length has a zero high byte, and no
HTTP method starts with NUL.
"""

from __future__ import annotations

from struct import Struct

from updraft.wire.packing import pack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, Final

WIRE_VERSION = 1
"""Rises when an old peer would misread a frame, or miss one that it needs."""

OLDEST_WIRE_VERSION = 1
"""The oldest version of a client or agent that a server still serves: a minor release back."""

HEADER = Struct("!IBQQ")
HEADER_SIZE: Final = HEADER.size
MAX_PAYLOAD = (1 << 24) - 1
"""Bound of a payload, 16 MiB: above an exec's argument limit, below a zero high byte's reach."""

CHUNK_BYTES = 256 * 1024
"""Data travels in pieces of this size: large enough for throughput, small enough to interleave."""

OUTPUT_WINDOW_BYTES = 4 * 1024 * 1024
"""How far output may run ahead of an attached reader before its writer is held back."""

INPUT_WINDOW_BYTES = 1024 * 1024
"""How much input may be under way between a client and a task."""

NO_LIMIT = (1 << 63) - 1
"""The limit of a stream that nobody is attached to: the task runs freely into its spool."""

STDIN, STDOUT, STDERR = 0, 1, 2

# -- every connection
HELLO = 1  # first frame: {role, wire, release, token, project, …}
WELCOME = 2  # the answer to it
ERROR = 3  # {code, message}; the connection ends
PING = 4  # offset: a number that the answer repeats; an agent's heartbeat
PONG = 5

# -- client and server
SUBMIT = 10  # {key, …}: a job (sdk.submission)
ACCEPTED = 11  # {job}: durable
ATTACH = 12  # {job, attempt, stdout, stderr}: take a job's streams up again
ATTEMPT = 13  # {number, serial, stdin}: the streams that follow are this attempt's
NOTICE = 14  # {message}: a line for the person
ENDED = 15  # {state, exit_code, message, stdout, stderr}: the last frame of a job
DETACH = 16  # the job goes on without this client
CANCEL = 17
EXEC = 18  # {job, argv, …}: a process beside a running job

# -- about an attempt; channel names it
SIGNAL = 20  # {signal}: to the command's process group
RESIZE = 21  # {rows, columns}
STOPPED = 22  # {signal}: the command is stopped by job control
CONTINUED = 23

# -- streams
DATA = 30
LIMIT = 31
GREW = 32
EOF = 33
CLOSE = 34  # the reader is gone; the writer is to see a broken pipe
ACK = 35
STORED = 36  # the server has stored an output stream up to here: more may follow

# -- server, agent, keeper
SPAWN = 40  # a grant: everything needed to start an attempt
STARTED = 41  # {pid, at}
EXITED = 42  # {status | lost | refused, usage, stdout, stderr, ended_by}
KILL = 43  # {why, grace}: end the attempt's whole tree
FORGET = 44  # {attempts}: their ends are stored; the runner drops its records
REPORT = 45  # {keeper, attempts, …}: all that a keeper holds, and what its runner has
DEADLINE = 46  # {limit_ms}: a new time limit, counted from the start
STOP = 47  # the runner is to leave: {cancel, unless_live, status, again}
SHIP = 48  # {stdout, stderr}: send output from these offsets on, to be stored by the server
LEASE = 49  # {ms}: fenced tasks end unless the lease is renewed within this time
UPGRADE = 50  # {release}: install it from the server's wheels; back, {problem}: it could not be

# -- crews: the tasks of one array on one runner; channel names the crew
CREW = 60  # {spec of what its tasks share, count, width}: so many of them at a time
TASKS = 61  # {tasks: [[attempt, index, number], …], width}: attempts for it, in their order
STARTS = 62  # {starts: [[attempt, pid, at], …]}
ENDS = 63  # {ends: [[attempt, end as of EXITED, or {unstarted, why}], …]}


def stream_channel(attempt: int, stream: int) -> int:
    """Return the channel of one stream of an attempt."""
    return attempt << 2 | stream


def frame(kind: int, channel: int = 0, offset: int = 0, payload: bytes = b"") -> bytes:
    """Return a whole frame."""
    return HEADER.pack(len(payload), kind, channel, offset) + payload


def message(kind: int, body: dict[str, Any], channel: int = 0) -> bytes:
    """Return a control frame whose payload is ``body``, packed."""
    return frame(kind, channel, 0, pack(body))


class FrameError(ValueError):
    """The peer broke the framing; the connection cannot be read any further."""


class FrameReader:
    """Turns received chunks into frames, without copying what it can hand on as it is.

    ``DATA`` payloads come out as soon as a part of them is there, as views into the chunk and with
    the offset of their own first byte: a relay forwards them without waiting for the rest.  Other
    frames come out whole, and are refused above ``max_control_bytes``.
    """

    def __init__(self, max_control_bytes: int = MAX_PAYLOAD) -> None:
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._wanted_bytes = 0  # nothing can be read before this much is held
        self._left = 0  # of the DATA frame that is passing through
        self._channel = 0
        self._offset = 0
        self.max_control_bytes = max_control_bytes
        self.empty = 0
        """How many frames there were that say nothing, and do not come out."""

    @property
    def held_bytes(self) -> int:
        """How much is held of a frame whose rest has not come."""
        return self._held_bytes if self._held else 0

    def feed(self, chunk: bytes) -> Iterator[tuple[int, int, int, bytes | memoryview]]:
        """Yield ``(kind, channel, offset, payload)`` for all that ``chunk`` completes.

        Raises ``FrameError`` when the peer breaks the framing.  Iterate to the end.
        """
        if self._held:
            self._held.append(chunk)
            self._held_bytes += len(chunk)
            if self._held_bytes < self._wanted_bytes:
                return
            chunk = b"".join(self._held)
            self._held = []
        at = 0
        size = len(chunk)
        view = memoryview(chunk)
        wanted = HEADER_SIZE
        while at < size:
            if self._left:
                part = view[at : at + self._left]
                count = len(part)
                yield DATA, self._channel, self._offset, part
                at += count
                self._left -= count
                self._offset += count
                continue
            if size - at < HEADER_SIZE:
                break
            length, kind, channel, offset = HEADER.unpack_from(chunk, at)
            if length > MAX_PAYLOAD:
                raise FrameError(f"a frame of {length} bytes is over the limit of {MAX_PAYLOAD}")
            if kind == DATA:
                at += HEADER_SIZE
                self._left, self._channel, self._offset = length, channel, offset
                if not length:
                    self.empty += 1
                continue
            if length > self.max_control_bytes:
                raise FrameError(
                    f"a message of {length} bytes is over the limit of {self.max_control_bytes}"
                )
            if size - at < HEADER_SIZE + length:
                wanted = HEADER_SIZE + length
                break
            at += HEADER_SIZE
            yield kind, channel, offset, chunk[at : at + length]
            at += length
        if at < size:
            self._held = [chunk[at:]]
            self._held_bytes = size - at
            self._wanted_bytes = wanted
