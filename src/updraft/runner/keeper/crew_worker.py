"""A crew's worker: runs one task of an array after another, and reads what they write itself.

A process of its own, forked by the keeper, which becomes once what all the tasks share: session,
directory, umask, limits, control group.  Each task is then one ``posix_spawn``, a fraction of what
forking this interpreter would cost.  It is the parent and subreaper of what it starts: a task has
ended when its command is reaped and nothing of it is left.

Talks frames with the keeper over a socket pair: TASKS (attempts to run, in their order), KILL and
DEADLINE come in; STARTED (only for a task that lasts), GREW and EXITED go out.  A worker whose
keeper is gone ends what it runs.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import socket
import sys
import time
from collections import deque

from updraft.runner.keeper import command, journal, processes
from updraft.storage.segments import SegmentWriter
from updraft.storage.times import TimesWriter
from updraft.wire import frames
from updraft.wire.packing import pack, unpack_dict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

_HANDLED = (
    *(signal.SIGTTOU, signal.SIGTTIN, signal.SIGTSTP, signal.SIGINT),
    *(signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM, signal.SIGPIPE),
)
_TOLD_AFTER_SECONDS = 0.02
"""A task that lasts so long is told to have started; of a shorter one its end tells."""

_OWN_UMASK = 0o077
_GREW_SECONDS = 0.05
_HOLD_SECONDS = 0.005
_KILL_AGAIN_SECONDS = 0.05
_DISK_RETRY_SECONDS = 1.0
_MAX_WAIT_SECONDS = 3600.0
_READ_BYTES = 256 * 1024
_RSS_ERROR_KIB = 2048
_NAMES = ((frames.STDOUT, "stdout"), (frames.STDERR, "stderr"))


def fork_worker(
    spec: dict[str, Any], groups: list[int], *, cloned: bool
) -> tuple[int, socket.socket]:
    """Fork a worker into control groups; return its process id and the keeper's end of its socket.

    ``spec``: of the crew, with ``journal``, the path of its notes.  Raises ``OSError``.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        pid, unjoined = processes.fork_into(groups) if cloned else (os.fork(), groups)
    except OSError:
        ours.close()
        theirs.close()
        raise
    if pid == 0:
        _work(theirs, spec, unjoined)
    theirs.close()
    ours.setblocking(False)
    return pid, ours


def _work(theirs: socket.socket, spec: dict[str, Any], groups: list[int]) -> NoReturn:
    status = 1
    try:
        for group in groups:
            os.write(group, b"0")
        keep = theirs.detach()
        os.dup2(keep, 3)
        os.set_inheritable(3, False)
        os.closerange(4, command.MAX_FD)
        _Worker(socket.socket(fileno=3), spec).run()
        status = 0
    except Exception:  # noqa: BLE001 - the log is to say why; the keeper sees that we are gone
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


class _KeeperGone(Exception):
    """The keeper's end of the socket closed."""


class _Stream:
    """An output stream of the task that runs."""

    def __init__(self, fd: int, folder: str, name: str, quota_bytes: int) -> None:
        self.fd = fd
        self.spool = SegmentWriter(folder, name, quota_bytes)
        self.told = 0
        self.unspooled = b""

    def waits_for_room(self) -> bool:
        """Whether the disk was full."""
        return bool(self.unspooled)


class _Worker:
    def __init__(self, keeper: socket.socket, spec: dict[str, Any]) -> None:
        os.setsid()
        processes.set_name("updraft-worker")
        processes.become_subreaper()
        self._keeper = keeper
        self._spec = spec
        self._reader = frames.FrameReader()
        self._out = bytearray()
        self._out_since = 0.0
        self._waiting: deque[tuple[int, int, int]] = deque()
        self._storage = processes.StorageCounts()
        self._io = self._storage.read()
        self._own_rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self._limit_ms: int | None = spec["deadline_ms"]
        self._grace_seconds = spec["grace_ms"] / 1000
        self._notes = b""
        self._reset()
        for number in _HANDLED:
            signal.signal(number, signal.SIG_IGN)
        wake, wake_write = processes.wake_pipe()
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        self._wake = wake
        keeper.setblocking(False)
        self._null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(keeper, select.POLLIN)
        self._poll.register(wake, select.POLLIN)
        self._refusal = self._become()
        whose = {"crew": spec["crew"], "job": spec["job"], "folder": spec["folder"]}
        self._journal = journal.Journal(spec["journal"], whose)

    def _reset(self) -> None:
        """Nothing runs."""
        self._attempt = 0
        self._main: int | None = None
        self._status: int | None = None
        self._cpu_seconds = 0.0
        self._max_rss: int | None = None
        self._started_ns = 0
        self._began = 0.0
        self._told = False
        self._why: str | None = None
        self._kill_at: float | None = None
        self._grew_at = 0.0
        self._retry_at: float | None = None
        self._streams: dict[int, _Stream] = {}
        self._times: TimesWriter | None = None
        self._reaped = False

    def _become(self) -> bytes | None:
        """Take on what the tasks share; return their packed refusal where that cannot be."""
        spec, step = self._spec, "limits"
        try:
            limits, _ = command.reachable_limits(spec["rlimits"], root=os.geteuid() == 0)
            for number, soft, hard in limits:
                resource.setrlimit(number, (soft, hard))
            own = os.getpriority(os.PRIO_PROCESS, 0)
            if spec["nice"] != own:
                try:
                    os.setpriority(os.PRIO_PROCESS, 0, spec["nice"])
                except PermissionError:  # a runner that was started nicer than this stays so
                    pass
            step = "directory"
            os.chdir(spec["directory"])
            # For the tasks only: what we make for them is ours to read, whatever that leaves them.
            self._umask: int = spec["umask"]
            os.umask(self._umask)
            os.umask(_OWN_UMASK)
        except (OSError, ValueError) as error:
            return pack({**command.refusal(step, error), "stdout": 0, "stderr": 0})
        ignored = set(spec["ignored_signals"])
        for number in ignored - {signal.SIGCHLD}:
            try:
                signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError):
                continue
        self._defaults = [
            number
            for number in range(1, signal.NSIG)
            if number not in (signal.SIGKILL, signal.SIGSTOP, 32, 33) and number not in ignored
        ]
        block = spec["environment"]
        self._environment = dict(
            entry.split(b"=", 1) for entry in block.split(b"\0") if b"=" in entry[1:]
        )
        self._environment[b"UPDRAFT_TASK_COUNT"] = b"%d" % spec["count"]
        self._program: bytes | None = None
        return None

    # -- the loop

    def run(self) -> None:
        try:
            while True:
                for _ in self._poll.poll(self._wait_ms()):
                    pass
                self._receive()
                self._drain_wake()
                if self._main is not None:
                    self._read_streams()
                    self._reap()
                    self._tick()
                while self._main is None and self._waiting:
                    self._start_next()
                if self._notes and self._main is None:
                    self._note()
                self._flush()
        except (_KeeperGone, ConnectionError):
            self._end_for_good()

    def _wait_ms(self) -> int | None:
        due: list[float] = []
        if self._out:
            due.append(self._out_since + _HOLD_SECONDS)
        if self._main is not None:
            if not self._told:
                due.append(self._began + _TOLD_AFTER_SECONDS)
            if self._limit_ms is not None and self._why is None:
                due.append(self._began + self._limit_ms / 1000)
            due += [at for at in (self._kill_at, self._retry_at) if at is not None]
            if any(each.told < each.spool.length for each in self._streams.values()):
                due.append(self._grew_at + _GREW_SECONDS)
        if not due:
            return None
        return max(0, int(min(min(due) - time.monotonic(), _MAX_WAIT_SECONDS) * 1000) + 1)

    def _drain_wake(self) -> None:
        try:
            os.read(self._wake, 512)
        except BlockingIOError:
            return

    def _receive(self) -> None:
        try:
            chunk = self._keeper.recv(65536)
        except BlockingIOError:
            return
        if not chunk:
            raise _KeeperGone
        for kind, channel, _, payload in self._reader.feed(chunk):
            body = unpack_dict(bytes(payload))
            if kind == frames.TASKS:
                self._waiting.extend((task[0], task[1], task[2]) for task in body["tasks"])
            elif kind == frames.KILL:
                self._kill(channel >> 2, body["why"], body["grace_ms"] / 1000)
            elif kind == frames.SIGNAL:
                self._signal(channel >> 2, body["signal"])
            elif kind == frames.DEADLINE:
                self._limit_ms = body["limit_ms"]

    # -- a task

    def _start_next(self) -> None:
        attempt, index, number = self._waiting.popleft()
        if self._refusal is not None:
            self._finish_unstarted(attempt, index, number, self._refusal)
            return
        self._notes += journal.start_note(attempt, index, number)
        if not self._note():
            self._notes = b""
            refused = {"refused": "start", "errno": 28, "message": "the runner cannot record it"}
            self._send_end(attempt, pack({**refused, "stdout": 0, "stderr": 0}))
            return
        pipes: list[int] = []
        try:
            pipes += os.pipe()
            pipes += os.pipe()
            environment = self._environment
            environment[b"UPDRAFT_TASK_INDEX"] = b"%d" % index
            environment[b"UPDRAFT_ATTEMPT"] = b"%d" % number
            pid = self._spawn(environment, pipes[1], pipes[3])
        except (OSError, ValueError, LookupError, TypeError) as error:  # a client's own words, too
            for fd in pipes:
                os.close(fd)
            step = "exec" if isinstance(error, _CannotExecute) else "start"
            refused = {**command.refusal(step, error), "stdout": 0, "stderr": 0}
            end = pack({**refused, "at": time.time_ns()})
            self._notes += journal.end_note(attempt, end)
            self._send_end(attempt, end)
            return
        os.close(pipes[1])
        os.close(pipes[3])
        self._attempt, self._main = attempt, pid
        self._started_ns, self._began = time.time_ns(), time.monotonic()
        folder = os.fsdecode(self._spec["folder"] + b"/%d.%d" % (index, number))
        quota = self._spec["quota_bytes"]
        for (stream, name), fd in zip(_NAMES, (pipes[0], pipes[2]), strict=True):
            os.set_blocking(fd, False)
            self._streams[stream] = _Stream(fd, folder, name, quota)
            self._poll.register(fd, select.POLLIN)
        self._times = TimesWriter(folder)

    def _spawn(self, environment: dict[bytes, bytes], stdout: int, stderr: int) -> int:
        """Start the command; the program that was found for the first task is the others'."""
        actions = [
            (os.POSIX_SPAWN_DUP2, self._null, 0),
            (os.POSIX_SPAWN_DUP2, stdout, 1),
            (os.POSIX_SPAWN_DUP2, stderr, 2),
        ]
        argv = self._spec["argv"]
        program = self._program
        if program is not None:
            try:
                return self._spawn_one(program, argv, environment, actions)
            except FileNotFoundError:
                self._program = None
        found: list[int] = []

        def start(path: bytes, arguments: list[bytes], surroundings: dict[bytes, bytes]) -> None:
            found.append(self._spawn_one(path, arguments, surroundings, actions))
            if arguments is argv:
                self._program = path

        try:
            command.search(argv, environment, start)
        except OSError as error:
            raise _CannotExecute(error.errno, error.strerror) from error
        return found[0]

    def _spawn_one(
        self,
        path: bytes,
        argv: list[bytes],
        environment: dict[bytes, bytes],
        actions: list[tuple[int, int, int]],
    ) -> int:
        os.umask(self._umask)
        try:
            return os.posix_spawn(
                path,
                argv,
                environment,
                file_actions=actions,
                setpgroup=0,
                setsigmask=[],
                setsigdef=self._defaults,
            )
        finally:
            os.umask(_OWN_UMASK)

    def _finish_unstarted(self, attempt: int, index: int, number: int, end: bytes) -> None:
        self._notes += journal.start_note(attempt, index, number) + journal.end_note(attempt, end)
        self._send_end(attempt, end)

    def _note(self) -> bool:
        """Write the notes that are due; False: there is no room for them."""
        try:
            self._journal.note(self._notes)
        except OSError:
            return False
        self._notes = b""
        return True

    # -- its output

    def _read_streams(self) -> None:
        for stream, output in self._streams.items():
            if output.fd >= 0 and not output.unspooled:
                self._read(stream, output)

    def _read(self, stream: int, output: _Stream) -> None:
        """Read what is there, a few chunks at most, so that no other thing waits for long."""
        for _ in range(4):
            try:
                data = os.read(output.fd, _READ_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._close(output)
                return
            if not self._spool(stream, output, data):
                return

    def _spool(self, stream: int, output: _Stream, data: bytes, *, again: bool = False) -> bool:
        before, left = output.spool.length, memoryview(data)
        try:
            while left:
                left = left[output.spool.append(left) :]
        except OSError:
            # Held back by its full pipe, the task waits until there is room again.
            output.unspooled = bytes(left)
            self._retry_at = time.monotonic() + _DISK_RETRY_SECONDS
            if output.fd >= 0 and not again:
                self._poll.unregister(output.fd)
            return False
        if self._times is not None:
            self._times.note(time.time_ns(), stream, before)
        return True

    def _retry(self) -> None:
        self._retry_at = None
        for stream, output in self._streams.items():
            if output.unspooled:
                data, output.unspooled = output.unspooled, b""
                if self._spool(stream, output, data, again=True) and output.fd >= 0:
                    self._poll.register(output.fd, select.POLLIN)

    def _close(self, output: _Stream) -> None:
        self._poll.unregister(output.fd)
        os.close(output.fd)
        output.fd = -1

    def _tell_growth(self) -> None:
        self._grew_at = time.monotonic()
        for stream, output in self._streams.items():
            if output.told < output.spool.length:
                output.told = output.spool.length
                channel = frames.stream_channel(self._attempt, stream)
                self._send(frames.frame(frames.GREW, channel, output.told))

    # -- its end

    def _kill(self, attempt: int, why: str, grace_seconds: float) -> None:
        if attempt != self._attempt or self._main is None:
            for task in self._waiting:
                if task[0] == attempt:
                    self._waiting.remove(task)
                    body = {"unstarted": True, "why": why, "stdout": 0, "stderr": 0}
                    self._send_end(attempt, pack(body))
                    return
            return
        if why in ("recall", "share"):
            return
        self._why = self._why or why
        processes.end_descendants(signal.SIGTERM if grace_seconds > 0 else signal.SIGKILL)
        kill_at = time.monotonic() + grace_seconds
        self._kill_at = kill_at if self._kill_at is None else min(self._kill_at, kill_at)

    def _signal(self, attempt: int, number: int) -> None:
        if attempt == self._attempt and self._main is not None and self._status is None:
            try:
                os.killpg(self._main, number)
            except (OSError, OverflowError, TypeError):
                return

    def _tick(self) -> None:
        """Do what is due of the task that runs."""
        if self._main is None:
            return
        now = time.monotonic()
        if not self._told and now >= self._began + _TOLD_AFTER_SECONDS:
            self._told = True
            body = {"pid": self._main, "at": self._started_ns}
            self._send(frames.message(frames.STARTED, body, self._attempt << 2))
        limit = self._limit_ms
        if limit is not None and self._why is None and now >= self._began + limit / 1000:
            self._kill(self._attempt, "time", self._grace_seconds)
        if self._kill_at is not None and now >= self._kill_at:
            processes.end_descendants(signal.SIGKILL)
            self._kill_at = now + _KILL_AGAIN_SECONDS
        if self._retry_at is not None and now >= self._retry_at:
            self._retry()
        if now >= self._grew_at + _GREW_SECONDS:
            self._tell_growth()

    def _reap(self) -> None:
        while not self._reaped:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                self._reaped = True
                break
            if pid == 0:
                break
            self._cpu_seconds += usage.ru_utime + usage.ru_stime
            # Until it became its program, a child shared our memory, and its peak is ours then.
            if usage.ru_maxrss > self._own_rss + _RSS_ERROR_KIB:
                self._max_rss = max(self._max_rss or 0, usage.ru_maxrss * 1024)
            if pid == self._main and self._status is None:
                self._status = status
        if self._reaped:
            self._finish_if_read()
        elif self._status is not None and self._kill_at is None:
            # What the command left behind gets the grace, not the machine.
            processes.end_descendants(signal.SIGTERM)
            self._kill_at = time.monotonic() + self._grace_seconds

    def _finish_if_read(self) -> None:
        """No process is left: once all that they wrote is stored, the task has ended."""
        for stream, output in self._streams.items():
            while output.fd >= 0 and not output.waits_for_room():
                before = output.spool.length
                self._read(stream, output)
                if output.waits_for_room():
                    return  # what it has still in its pipe is read once there is room
                if output.fd >= 0 and output.spool.length == before:
                    self._close(output)  # somebody elsewhere holds its other end
            if output.waits_for_room():
                return
        then, self._io = self._io, self._storage.read()
        io: tuple[int | None, int | None] = (None, None)
        if then is not None and self._io is not None:
            io = (self._io[0] - then[0], self._io[1] - then[1])
        for output in self._streams.values():
            output.spool.close()
        end = pack(
            {
                "status": self._status if self._status is not None else int(signal.SIGKILL),
                "at": time.time_ns(),
                "started": self._started_ns,
                "pid": self._main,
                "why": self._why,
                "cpu_ns": int(self._cpu_seconds * 1e9),
                "peak_memory_bytes": self._max_rss,
                "read_bytes": io[0],
                "written_bytes": io[1],
                "stdout": self._streams[frames.STDOUT].spool.length,
                "stderr": self._streams[frames.STDERR].spool.length,
            }
        )
        # Written with the next task's start, or when there is none.
        self._notes += journal.end_note(self._attempt, end)
        self._send_end(self._attempt, end)
        self._reset()

    # -- to the keeper

    def _send_end(self, attempt: int, end: bytes) -> None:
        self._send(frames.frame(frames.EXITED, attempt << 2, 0, end))

    def _send(self, data: bytes) -> None:
        if not self._out:
            self._out_since = time.monotonic()
        self._out += data

    def _flush(self) -> None:
        """Send what was said, once nothing more is about to be."""
        busy = self._main is not None and self._waiting
        if not self._out or (busy and time.monotonic() < self._out_since + _HOLD_SECONDS):
            return
        self._keeper.setblocking(True)  # the keeper always reads
        try:
            self._keeper.sendall(self._out)
        finally:
            self._keeper.setblocking(False)
        self._out.clear()

    def _end_for_good(self) -> None:
        while True:
            processes.end_descendants(signal.SIGKILL)
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                return
            select.select([], [], [], _KILL_AGAIN_SECONDS)


class _CannotExecute(OSError):
    """None of the programs that the command may mean could be executed."""
