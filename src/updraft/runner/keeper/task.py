"""One running attempt: its leader, its descriptors, its input and the spools of its output."""

from __future__ import annotations

import fcntl
import os
import selectors
import signal
import socket
import stat
import struct
import termios
import time

from updraft.runner.keeper import processes
from updraft.runner.keeper.leader import fork_beside, fork_leader
from updraft.storage.segments import SegmentWriter
from updraft.storage.times import TimesWriter
from updraft.wire import frames
from updraft.wire.packing import unpack_dict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final, Protocol

    from updraft.runner.keeper.cgroups import Slot

    class Events(Protocol):
        """What a task tells its keeper."""

        def grew(self, channel: int, length: int) -> None: ...
        def took(self, channel: int, offset: int) -> None: ...
        def input_closed(self, channel: int) -> None: ...
        def said(self, kind: int, task: Task, body: dict[str, Any]) -> None: ...
        def ended(self, task: Task) -> None: ...


_F_SETPIPE_SZ = 1031
_F_GETPIPE_SZ = 1032
_PIPE_BYTES = 1 << 20
_BUFFER: Final = memoryview(bytearray(1 << 20))
"""What is read lies here until it is spooled: one buffer for all, as the keeper has one thread."""

_DISK_RETRY_SECONDS = 1.0
_LEADER_SECONDS = 10.0
"""How much longer than the grace a leader may take to end its tree, before that is done for it."""
_CREDENTIALS: Final = struct.Struct("iII")
_ANCILLARY_BYTES = socket.CMSG_SPACE(_CREDENTIALS.size)


class IdleLeader:
    """A leader that waits for a task.  Raises ``OSError``.

    ``beside``: the leader of an isolated task, for a command beside it; the new one is that
    leader's child, so its process id is not known here.
    """

    def __init__(self, *, isolated: bool = False, beside: IdleLeader | None = None) -> None:
        self.isolated = isolated
        self.pid: int | None = None
        self.socket: socket.socket
        if beside is not None:
            self.isolated = True
            self.socket = fork_beside(beside.socket)
        else:
            self.pid, self.socket = fork_leader(isolated=isolated)

    def alive(self) -> bool:
        """Whether it still listens: it has nothing to say before it has a task."""
        try:
            return self.socket.recv(1, socket.MSG_PEEK) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False


class Task:
    """An attempt from its SPAWN to its end; calls back into the keeper through ``Events``.

    Keeps nothing in memory but input on its way (bounded by the input window) and, on a full disk,
    the one chunk that could not be spooled.
    """

    def __init__(
        self,
        attempt: int,
        spec: dict[str, Any],
        selector: selectors.BaseSelector,
        events: Events,
    ) -> None:
        self.attempt = attempt
        self.spec = spec
        self.pid: int | None = None
        self.started_at: int | None = None
        self._began = 0.0  # the same by a clock that does not jump
        self.stopped = False
        self.end: dict[str, Any] | None = None
        self.why: str | None = None
        self.grace_seconds: float = spec["grace_ms"] / 1000
        self.deadline: float | None = None
        self._give_up_at: float | None = None
        self._given_up = False
        self._limit_ms: int | None = None
        self.set_limit(spec["deadline_ms"])
        self.retry_disk_at: float | None = None
        self.leader: IdleLeader | None = None
        self.slot: Slot | None = None
        self._exit: dict[str, Any] | None = None
        self._reader = frames.FrameReader()
        self._selector = selector
        self._events = events
        self._tty = spec["tty"] is not None
        self._isolation: dict[str, Any] | None = spec.get("isolation")
        folder = os.fsdecode(spec["folder"])
        os.makedirs(folder, mode=0o700, exist_ok=True)
        self._streams = {
            stream: _Output(self, stream, folder, name)
            for stream, name in ((frames.STDOUT, "stdout"), (frames.STDERR, "stderr"))
        }
        self._times = TimesWriter(folder)
        self._stdin: int | None = None
        self._input = bytearray()
        self._input_written = 0  # handed to the kernel
        self._input_end: int | None = None
        self._input_watched = False

    # -- start

    def start(self, leader: IdleLeader) -> None:
        """Hand the task to its leader.  Raises ``OSError`` when there are no more descriptors."""
        self.leader = leader
        theirs: list[int] = []
        try:
            if self._tty:
                self._open_tty(theirs)
            else:
                self._open_pipes(theirs)
            spec = self.spec
            groups = [] if self.slot is None else self.slot.entries
            order = {
                "fds": len(theirs) + len(groups),
                "tty": self._tty,
                "grace_ms": int(self.grace_seconds * 1000),
                "cloned": self.slot is not None and self.slot.cloned,
                "rlimits": spec["rlimits"],
                "nice": spec["nice"],
                "closed_fds": spec["closed_fds"],
                "directory": spec["directory"],
                "umask": spec["umask"],
                "ignored_signals": spec["ignored_signals"],
                "argv": spec["argv"],
                "environment": spec["environment"],
                "isolation": self._isolation,
                "fallback_directory": bool(
                    spec.get("fallback_directory") and spec.get("isolation")
                ),
            }
            self._give_away(theirs)
            leader.socket.setblocking(True)
            data = memoryview(frames.message(frames.SPAWN, order))
            sent = socket.send_fds(leader.socket, [data], [*theirs, *groups])
            if sent < len(data):  # sending nothing fails if the leader has already done it all
                leader.socket.sendall(data[sent:])
            leader.socket.setblocking(False)
        finally:
            for fd in set(theirs):
                os.close(fd)
        self._watch(leader.socket.fileno(), selectors.EVENT_READ, self._hear)
        for output in self._streams.values():
            output.resume()

    def _give_away(self, theirs: list[int]) -> None:
        """Let an isolated task open its own streams by name: they are its owner's."""
        if self._isolation is None:
            return
        from updraft.runner.keeper import isolation  # noqa: PLC0415 - a personal runner needs none

        for fd in set(theirs):
            if os.isatty(fd):
                os.fchown(fd, self._isolation["uid"], isolation.terminal_group())
                os.fchmod(fd, 0o620)
            elif stat.S_ISFIFO(os.fstat(fd).st_mode):
                os.fchown(fd, self._isolation["uid"], self._isolation["gid"])

    def _open_tty(self, theirs: list[int]) -> None:
        tty = self.spec["tty"]
        master, slave = os.openpty()
        self._streams[frames.STDOUT].fd = master
        theirs += [slave, slave]
        os.set_blocking(master, False)
        if tty["attributes"] is not None:
            _set_attributes(slave, tty["attributes"])
        _set_size(master, tty["rows"], tty["columns"])
        self._stdin = os.dup(master)
        if tty["stderr"]:
            theirs.append(slave)
            self._streams[frames.STDERR].closed = True
        else:
            theirs.append(self._pipe(frames.STDERR))
        theirs.append(slave)

    def _open_pipes(self, theirs: list[int]) -> None:
        if self.spec["stdin"]:
            read, write = os.pipe()
            os.set_blocking(write, False)
            self._stdin = write
            theirs.append(read)
        else:
            theirs.append(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
        theirs.append(self._pipe(frames.STDOUT))
        if self.spec["one_output"]:
            theirs.append(theirs[-1])
            self._streams[frames.STDERR].closed = True
        else:
            theirs.append(self._pipe(frames.STDERR))

    def _pipe(self, stream: int) -> int:
        read, write = os.pipe()
        os.set_blocking(read, False)
        self._streams[stream].fd = read
        return write

    def abandon(self) -> None:
        """Close all that was opened for a start that failed."""
        self._hang_up()
        self._close_input()
        for output in self._streams.values():
            output.close()

    # -- what the agent says

    def receive_input(self, offset: int, data: bytes | memoryview) -> None:
        """Take input that starts at ``offset``; what was taken before is passed over."""
        have = self._input_written + len(self._input)
        if self._stdin is None or offset > have:
            return  # a gap: the sender starts again from our ACK
        fresh = data[have - offset :]
        room = frames.INPUT_WINDOW_BYTES - len(self._input)
        self._input += fresh[: max(room, 0)]
        self._write_input()

    def end_input(self, length: int) -> None:
        """The input ends at ``length``: close it there."""
        self._input_end = length
        self._write_input()

    def limit(self, stream: int, offset: int) -> None:
        """The attached reader has room up to ``offset`` of an output stream."""
        output = self._streams.get(stream)
        if output is not None:
            output.limit = offset
            output.resume()

    def close_output(self, stream: int) -> None:
        """The reader of an output stream is gone: the writer is to see a broken pipe."""
        output = self._streams.get(stream)
        if output is not None:
            output.close()

    def lease(self, ms: int, grace_ms: int) -> None:
        """The runner is in touch with its server: a fenced task may run for so long from now."""
        if self.spec.get("fenced"):
            self._tell_leader(frames.LEASE, {"ms": ms, "grace_ms": grace_ms})

    def signal(self, number: int) -> None:
        """Send a signal to the command's process group."""
        self._tell_leader(frames.SIGNAL, {"signal": number})

    def resize(self, rows: int, columns: int) -> None:
        """Give the terminal a new size; the kernel tells its foreground processes."""
        master = self._streams[frames.STDOUT].fd
        if self._tty and master is not None:
            _set_size(master, rows, columns)

    def kill(self, why: str, grace_seconds: float) -> None:
        """End the whole tree: SIGTERM, and after the grace SIGKILL."""
        if self.why is None:
            self.why = why
        give_up_at = time.monotonic() + grace_seconds + _LEADER_SECONDS
        self._give_up_at = min(give_up_at, self._give_up_at or give_up_at)
        self._tell_leader(frames.KILL, {"grace_ms": int(grace_seconds * 1000)})

    def set_limit(self, limit_ms: int | None) -> None:
        """Limit the run to so long from its start, which may be to come; None lifts the limit."""
        self._limit_ms = None if limit_ms is None else int(limit_ms)
        self.deadline = None
        if limit_ms is not None and self.started_at is not None and self.why is None:
            self.deadline = self._began + limit_ms / 1000

    # -- what the keeper reports

    @property
    def unenforced(self) -> list[str]:
        """Which of the limits that were asked for nothing enforces here."""
        limited = self.slot is not None and self.slot.limits_memory
        return [] if limited or not self.spec["memory_bytes"] else ["memory"]

    def report(self) -> dict[str, Any]:
        """Return what an agent that knows nothing has to know."""
        return {
            "job": self.spec["job"],
            "pid": self.pid,
            "at": self.started_at,
            "stopped": self.stopped,
            "unenforced": self.unenforced,
            "end": self.end,
            "folder": self.spec["folder"],
            "input": self._input_written,
            "stdout": self._streams[frames.STDOUT].spool.length,
            "stderr": self._streams[frames.STDERR].spool.length,
        }

    def tick(self, now: float) -> None:
        """Do what is due: the time limit, and spooling again after a full disk."""
        if self.deadline is not None and now >= self.deadline:
            self.deadline = None
            self.kill("time", self.grace_seconds)
        if self._give_up_at is not None and now >= self._give_up_at:
            self._give_up_at = None
            self._give_up_leader()
        if self.retry_disk_at is not None and now >= self.retry_disk_at:
            self.retry_disk_at = None
            for output in self._streams.values():
                output.resume()
            self._finish_if_done()

    def next_tick(self) -> float | None:
        """Return when ``tick`` has something to do (monotonic seconds), None for never."""
        dues = (self.deadline, self.retry_disk_at, self._give_up_at)
        times = [at for at in dues if at is not None]
        return min(times, default=None)

    # -- the leader

    def _tell_leader(self, kind: int, body: dict[str, Any]) -> None:
        if self.leader is None:
            return
        try:
            self.leader.socket.sendall(frames.message(kind, body))
        except OSError:
            # It is dead, or its socket is full of unread signals: one more says nothing new.
            return

    def _give_up_leader(self) -> None:
        """Kill a leader that does not do what it was told, be it stopped or stuck.

        What it leaves is the keeper's to end.
        """
        if not self.over and self.leader is not None and self.leader.pid is not None:
            self._given_up = True
            processes.signal_all([self.leader.pid], signal.SIGKILL)

    def hear_the_last(self) -> None:
        """Take what the leader said before it ended: its death may be noticed first."""
        leader = self.leader
        if leader is not None and leader.isolated:
            # One read ends where the sender's credentials change.
            while not self.over and leader.socket.fileno() >= 0 and self._hear_leader():
                pass
        elif not self.over and leader is not None and leader.socket.fileno() >= 0:
            self._hear_leader()

    def _hear(self) -> None:
        self._hear_leader()

    def _hear_leader(self) -> bool:
        """Take what the leader said; return whether it said anything."""
        leader = self.leader
        if leader is None:
            return False
        about = None
        try:
            if leader.isolated:
                chunk, ancillary, _, _ = leader.socket.recvmsg(65536, _ANCILLARY_BYTES)
                about = _sender(ancillary)
            else:
                chunk = leader.socket.recv(65536)
        except BlockingIOError:
            return False
        except ConnectionError:
            chunk = b""
        if not chunk:  # it was killed: once it is reaped, the keeper ends what it left
            self._hang_up()
            if leader.pid is None and not self.over:
                self.tree_ended()  # what it left is the task's beside it, and ends with that
            return False
        for kind, _, _, payload in self._reader.feed(chunk):
            body = unpack_dict(bytes(payload))
            if kind == frames.STARTED:
                if leader.isolated:
                    body["pid"] = about
                body["unenforced"] = self.unenforced
                self.pid, self.started_at = body["pid"], body["at"]
                self._began = time.monotonic() - max(0, time.time_ns() - body["at"]) / 1e9
                self.set_limit(self._limit_ms)
            elif kind == frames.STOPPED:
                self.stopped = True
                # What it wrote, and the ^Z that its terminal echoed, is shown before the stop.
                for output in self._streams.values():
                    output.read_what_is_there()
                body["stdout"] = self._streams[frames.STDOUT].spool.length
                body["stderr"] = self._streams[frames.STDERR].spool.length
            elif kind == frames.CONTINUED:
                self.stopped = False
            if kind == frames.EXITED:
                self._exit = body
                self._drain()
            else:
                self._events.said(kind, self, body)
        return True

    def tree_ended(self) -> None:
        """The leader was killed, and what it left to the keeper has been ended."""
        if self._exit is None:
            how: dict[str, Any] = {"lost": "its leader process was killed"}
            if self._given_up:
                how = {"status": int(signal.SIGKILL)}
            self._exit = {**how, "at": time.time_ns()}
            self._drain()

    def release_leader(self) -> IdleLeader | None:
        """Return the leader if it can lead another task.

        One with a pty leads only one, and so does one that has seen what is its owner's.
        """
        leader = self.leader
        once = self._tty or (leader is not None and leader.isolated)
        # One whose socket is closed was killed since the task's last process ended.
        gone = leader is None or leader.socket.fileno() < 0 or self._given_up
        if leader is None or gone or once or self._exit is None or "lost" in self._exit:
            self._hang_up()
            self.leader = None
            return None
        self._selector.unregister(leader.socket.fileno())
        self.leader = None
        return leader

    def _hang_up(self) -> None:
        leader = self.leader
        if leader is None or leader.socket.fileno() < 0:
            return
        if leader.socket.fileno() in self._selector.get_map():
            self._selector.unregister(leader.socket.fileno())
        leader.socket.close()

    # -- the end

    def _drain(self) -> None:
        # No writer is left, so each stream reads to its end without waiting.
        for output in self._streams.values():
            output.resume()
        self._close_input()
        self._finish_if_done()

    def output_closed(self) -> None:
        """An output stream came to its end."""
        self._finish_if_done()

    def _finish_if_done(self) -> None:
        if self._exit is None or self.end is not None:
            return
        if not all(output.closed for output in self._streams.values()):
            return
        self.deadline = self._give_up_at = None
        self.end = {
            **self._exit,
            "why": self.why,
            "stdout": self._streams[frames.STDOUT].spool.length,
            "stderr": self._streams[frames.STDERR].spool.length,
        }
        for output in self._streams.values():
            output.spool.close()
        self._events.ended(self)

    # -- input

    def _write_input(self) -> None:
        if self._stdin is None:
            return
        before = self._input_written
        full = False
        try:
            while self._input:
                count = os.write(self._stdin, memoryview(self._input)[:65536])
                del self._input[:count]
                self._input_written += count
            if self._tty and self._input_ended:
                # The end of piped input on a terminal is the character that means it.
                os.write(self._stdin, b"\x04")
                self._input_end = None
        except BlockingIOError:
            full = True
        except OSError:  # the command closed its stdin, or hung up its terminal
            self._close_input()
            self._events.input_closed(frames.stream_channel(self.attempt, frames.STDIN))
            return
        if self._input_written != before:
            channel = frames.stream_channel(self.attempt, frames.STDIN)
            self._events.took(channel, self._input_written)
        self._watch_input(full)
        if self._input_ended and not full:
            self._close_input()

    @property
    def _input_ended(self) -> bool:
        return self._input_end is not None and self._input_written >= self._input_end

    def _watch_input(self, watched: bool) -> None:
        if self._stdin is None or watched == self._input_watched:
            return
        self._input_watched = watched
        if watched:
            self._watch(self._stdin, selectors.EVENT_WRITE, self._write_input)
        else:
            self._selector.unregister(self._stdin)

    def _close_input(self) -> None:
        if self._stdin is None:
            return
        self._watch_input(False)
        os.close(self._stdin)
        self._stdin = None
        self._input.clear()

    # -- shared with the streams

    def _watch(self, fd: int, mask: int, callback: Callable[[], None]) -> None:
        self._selector.register(fd, mask, callback)

    def spooled(self, output: _Output) -> None:
        """Bytes of a stream were stored: tell of them, and note the time."""
        self._times.note(time.time_ns(), output.stream, output.told)
        output.told = output.spool.length
        channel = frames.stream_channel(self.attempt, output.stream)
        self._events.grew(channel, output.spool.length)

    @property
    def selector(self) -> selectors.BaseSelector:
        """The keeper's selector."""
        return self._selector

    @property
    def over(self) -> bool:
        """Whether no process of the task is left."""
        return self._exit is not None


class _Output:
    """One output stream: reads its descriptor into its spool, as far as its limit allows."""

    def __init__(self, task: Task, stream: int, folder: str, name: str) -> None:
        self._task = task
        self.stream = stream
        self.fd: int | None = None
        self.closed = False
        self.told = 0
        self.limit: int = task.spec["limits"][stream - 1]
        self.spool = SegmentWriter(folder, name, task.spec["quota_bytes"])
        self._unspooled: bytes | memoryview = b""
        self._left: int | None = None  # of what may be in its pipe once the task is over
        self._watched = False
        self._grown = False

    def resume(self) -> None:
        """Go on reading if the limit allows; once the task is over, read all that is left."""
        while not self.closed:
            if self._unspooled and not self._spool(self._unspooled):
                return
            if self.fd is None:
                self.close()
                return
            if self.spool.length >= self.limit and not self._task.over:
                self._set_watched(False)
                return
            if not self._task.over:
                self._set_watched(True)
                return
            if not self._read():
                return

    def readable(self) -> None:
        """The descriptor has bytes, or its end."""
        self._read()
        if self.spool.length >= self.limit or self._unspooled:
            self._set_watched(False)

    def read_what_is_there(self) -> None:
        """Read what may be in its pipe without waiting, as far as the limit allows.

        No more, since who goes on writing would hold up all others.
        """
        end = 0 if self.fd is None else min(self.limit, self.spool.length + _capacity(self.fd))
        while not self.closed and not self._unspooled and self.spool.length < end:
            if not self._read():
                return

    def close(self) -> None:
        """Close the descriptor: the stream ends here, once all that was read of it is stored."""
        if self.closed:
            return
        self._set_watched(False)
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None
        if self._unspooled:
            return
        self.closed = True
        self._task.output_closed()

    def _read(self) -> bool:
        assert self.fd is not None  # noqa: S101 - only called while it is open
        room = max(self.limit - self.spool.length, 0)
        if self._task.over:
            # The task writes no more: what its pipe holds is little, and all that its end waits
            # for.  Somebody outside its tree may have the other side, and is not waited for.
            if self._left is None:
                self._left = _capacity(self.fd)
            room = min(len(_BUFFER), self._left)
        try:
            count = os.readv(self.fd, [_BUFFER[:room]])
        except BlockingIOError:
            # After the end this means that somebody outside the tree still holds the other side.
            if self._task.over:
                self.close()
            return False
        except OSError:  # EIO: the last holder of the pty's other side is gone
            count = 0
        if count == 0:
            self.close()
            return False
        if self._left is not None:
            self._left -= count
        return self._spool(_BUFFER[:count])

    def _spool(self, data: bytes | memoryview) -> bool:
        """Store ``data``; on a full disk keep it and try again later.  Returns whether all went."""
        left = memoryview(data)
        keep_from = None
        if self.limit != frames.NO_LIMIT:
            keep_from = self.limit - frames.OUTPUT_WINDOW_BYTES
        try:
            while left:
                left = left[self.spool.append(left, keep_from) :]
        except OSError:
            # Nothing is lost: the task is held back by its full pipe until there is room again.
            self._unspooled = bytes(left)  # the buffer is every stream's
            self._set_watched(False)
            self._task.retry_disk_at = time.monotonic() + _DISK_RETRY_SECONDS
            self._task.spooled(self)
            return False
        self._unspooled = b""
        self._task.spooled(self)
        if not self._grown and len(data) >= 65536 and self.fd is not None:
            # A large writer gets a large pipe: fewer turns between it and us.
            self._grown = True
            try:
                fcntl.fcntl(self.fd, _F_SETPIPE_SZ, _PIPE_BYTES)
            except OSError:
                pass
        return True

    def _set_watched(self, watched: bool) -> None:
        if watched == self._watched or self.fd is None:
            return
        self._watched = watched
        if watched:
            self._task.selector.register(self.fd, selectors.EVENT_READ, self.readable)
        else:
            self._task.selector.unregister(self.fd)


def _capacity(fd: int) -> int:
    """Return how much can lie between a stream's writer and us."""
    try:
        return fcntl.fcntl(fd, _F_GETPIPE_SZ)
    except OSError:  # a terminal
        return _PIPE_BYTES


def _sender(ancillary: list[tuple[int, int, bytes]]) -> int | None:
    """Return the process that a message names, as its number is here."""
    for _, _, data in ancillary:
        return int(_CREDENTIALS.unpack_from(data)[0])
    return None


def _set_size(fd: int, rows: int, columns: int) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def _set_attributes(fd: int, attributes: list[Any]) -> None:
    """Make the terminal like the client's: its modes and control characters."""
    current = termios.tcgetattr(fd)
    # Speeds are a property of the client's line, not of ours.
    values = [*attributes[:4], current[4], current[5], attributes[6]]
    try:
        termios.tcsetattr(fd, termios.TCSANOW, values)
    except (termios.error, TypeError, ValueError, OverflowError):
        return
