"""A task's leader: the session leader, parent and subreaper of one task's processes.

Forked ahead of need from the keeper, one per running task.  The command runs as the leader's
child, in a process group of its own within the leader's session: a stopped command then has a
parent in its session, which is what lets the kernel stop it (POSIX: not an orphaned process group),
and whatever the command leaves behind is the leader's to end.  A leader whose keeper dies ends its
tree.

Talks frames with the keeper over a socket pair: SPAWN (with the task's descriptors), SIGNAL and
KILL come in; STARTED, STOPPED, CONTINUED and EXITED go out.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import select
import signal
import socket
import termios
import time

from updraft.runner.keeper import processes
from updraft.wire import frames
from updraft.wire.packing import pack, unpack_dict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

_IGNORED = (
    signal.SIGTTOU,
    signal.SIGTTIN,
    signal.SIGTSTP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGHUP,
    signal.SIGTERM,
    signal.SIGPIPE,
)
_MAX_FD = 1 << 20
_KILL_AGAIN_SECONDS = 0.05
_RSS_ERROR_KIB = 1024  # the kernel counts in batches on each CPU
_MAX_WAIT_SECONDS = 3600.0  # poll takes no more than 24 days


def fork_leader() -> tuple[int, socket.socket]:
    """Fork a leader; return its process id and the keeper's end of the socket pair."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    pid = os.fork()
    if pid:
        theirs.close()
        ours.setblocking(False)
        return pid, ours
    status = 1
    try:
        # The keeper's other descriptors (locks, ptys, other tasks' pipes) are not ours to hold.
        keep = theirs.detach()
        os.dup2(keep, 3)
        os.closerange(4, _MAX_FD)
        _Leader(socket.socket(fileno=3)).run()
        status = 0
    finally:
        os._exit(status)


class _KeeperGone(Exception):
    """The keeper's end of the socket closed."""


class _Leader:
    def __init__(self, keeper: socket.socket) -> None:
        os.setsid()
        processes.set_name("updraft-leader")
        self._keeper = keeper
        self._subreaper = processes.become_subreaper()
        self._frames = frames.FrameReader()
        self._fds: list[int] = []
        self._tty: int | None = None
        self._main: int | None = None
        self._main_status: int | None = None
        self._cpu_seconds = 0.0
        self._max_rss: int | None = None
        self._storage = processes.StorageCounts()
        self._io = self._storage.read()
        self._grace_seconds = 10.0
        self._kill_at: float | None = None
        self._once = False
        for number in _IGNORED:
            signal.signal(number, signal.SIG_IGN)
        wake_read, wake_write = processes.wake_pipe()
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        self._wake = wake_read
        keeper.setblocking(False)

    def run(self) -> None:
        poll = select.poll()
        poll.register(self._keeper, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        try:
            while not (self._once and self._main is None):
                poll.poll(self._wait_ms())
                self._drain_wake()
                self._receive()
                self._reap()
        except (_KeeperGone, ConnectionError):
            self._end_for_good()

    def _wait_ms(self) -> int | None:
        if self._kill_at is None:
            return None
        seconds = min(self._kill_at - time.monotonic(), _MAX_WAIT_SECONDS)
        return max(0, int(seconds * 1000) + 1)

    def _drain_wake(self) -> None:
        try:
            while os.read(self._wake, 512):
                pass
        except BlockingIOError:
            return

    # -- from the keeper

    def _receive(self) -> None:
        while True:
            try:
                chunk, fds, _, _ = socket.recv_fds(self._keeper, 256 * 1024, 16)
            except BlockingIOError:
                return
            self._fds += fds
            if not chunk:
                raise _KeeperGone
            for kind, _, _, payload in self._frames.feed(chunk):
                body = unpack_dict(bytes(payload))
                if kind == frames.SPAWN:
                    self._spawn(body)
                elif kind == frames.SIGNAL:
                    self._signal(body["signal"])
                elif kind == frames.KILL:
                    self._end_tree(body["grace_ms"] / 1000)

    def _spawn(self, spec: dict[str, Any]) -> None:
        # Descriptors in the order that task.py sends them.
        fds, self._fds = self._fds, []
        stdin, stdout, stderr = fds[:3]
        self._once = spec["tty"]
        self._grace_seconds = spec["grace_ms"] / 1000
        self._kill_at = None
        self._main_status = None
        self._cpu_seconds, self._max_rss = 0.0, None
        limits, clamped = _reachable_limits(spec["rlimits"])
        status_read, status_write = os.pipe()
        if spec["tty"]:
            self._tty = fds[3]
            fcntl.ioctl(self._tty, termios.TIOCSCTTY, 0)
        groups = fds[3 + self._once :]
        pid, unjoined = processes.fork_into(groups) if spec["cloned"] else (os.fork(), groups)
        if pid == 0:
            spec["rlimits"], spec["groups"] = limits, unjoined
            _become_command(spec, (stdin, stdout, stderr), self._tty, status_write)
        os.close(status_write)
        for fd in (*fds[:3], *groups):
            os.close(fd)
        with open(status_read, "rb") as status:
            failure = status.read()
        if failure:
            os.waitpid(pid, 0)
            self._close_tty()
            self._send(frames.EXITED, unpack_dict(failure))
            return
        self._main = pid
        body = {"pid": pid, "at": time.time_ns(), "clamped_limits": clamped}
        self._send(frames.STARTED, body)

    def _signal(self, number: int) -> None:
        if self._main is None or self._main_status is not None:
            return
        if number == signal.SIGCONT and self._tty is not None:
            # As a shell's fg does: the terminal goes to the job before it goes on.
            try:
                os.tcsetpgrp(self._tty, self._main)
            except OSError:
                pass
        try:
            os.killpg(self._main, number)
        except (OSError, OverflowError, TypeError):  # gone, another user's, or no signal at all
            return

    def _end_tree(self, grace_seconds: float) -> None:
        if self._main is None:
            return
        processes.end_descendants(signal.SIGTERM if grace_seconds > 0 else signal.SIGKILL)
        # To ask again can bring the end forward, and never puts it off.
        kill_at = time.monotonic() + grace_seconds
        self._kill_at = kill_at if self._kill_at is None else min(self._kill_at, kill_at)

    # -- the tree

    def _reap(self) -> None:
        if self._main is None:
            return
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
            except ChildProcessError:
                self._finish()
                return
            if pid == 0:
                break
            if os.WIFSTOPPED(status):
                if pid == self._main:
                    self._send(frames.STOPPED, {"signal": os.WSTOPSIG(status)})
            elif os.WIFCONTINUED(status):
                if pid == self._main:
                    self._send(frames.CONTINUED, {})
            else:
                self._count(pid, status, usage)
        if self._main_status is not None and self._kill_at is None:
            # The job ends with its command: what it left behind gets the grace, not the machine.
            processes.end_descendants(signal.SIGTERM)
            self._kill_at = time.monotonic() + self._grace_seconds
        if self._kill_at is not None and time.monotonic() >= self._kill_at:
            processes.end_descendants(signal.SIGKILL)
            self._kill_at = time.monotonic() + _KILL_AGAIN_SECONDS

    def _count(self, pid: int, status: int, usage: resource.struct_rusage) -> None:
        self._cpu_seconds += usage.ru_utime + usage.ru_stime
        # A forked child starts with its parent's peak, and exec keeps it: about ours it says
        # nothing about the command.
        ours = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if usage.ru_maxrss > ours + _RSS_ERROR_KIB:
            self._max_rss = max(self._max_rss or 0, usage.ru_maxrss * 1024)
        if pid == self._main and self._main_status is None:
            self._main_status = status

    def _finish(self) -> None:
        status = self._main_status
        self._main = None
        self._kill_at = None
        self._close_tty()
        before, self._io = self._io, self._storage.read()
        io = None
        if before is not None and self._io is not None:
            io = [now - then for now, then in zip(self._io, before, strict=True)]
        self._send(
            frames.EXITED,
            {
                "status": status if status is not None else signal.SIGKILL,
                "at": time.time_ns(),
                "cpu_ns": int(self._cpu_seconds * 1e9),
                "peak_memory_bytes": self._max_rss,
                "read_bytes": io and io[0],
                "written_bytes": io and io[1],
            },
        )

    def _close_tty(self) -> None:
        # The last holder of the slave side: its close is what lets the keeper read to the end.
        if self._tty is not None:
            os.close(self._tty)
            self._tty = None

    def _end_for_good(self) -> None:
        while True:
            processes.end_descendants(signal.SIGKILL)
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                return
            select.select([], [], [], _KILL_AGAIN_SECONDS)

    def _send(self, kind: int, body: dict[str, Any]) -> None:
        # A few small messages a task: they fit the socket's buffer, and the keeper always reads.
        self._keeper.setblocking(True)
        try:
            self._keeper.sendall(frames.message(kind, body))
        finally:
            self._keeper.setblocking(False)


def _reachable_limits(wanted: list[list[int]]) -> tuple[list[list[int]], list[int]]:
    """Return the limits to set, as far as our own hard limits allow, and which ones fell short."""
    limits: list[list[int]] = []
    clamped: list[int] = []
    for number, soft, hard in wanted:
        try:
            own_soft, own_hard = resource.getrlimit(number)
        except ValueError:  # the client's system has a limit that ours has not
            clamped.append(number)
            continue
        if os.geteuid() != 0:
            reach = (soft, hard)
            soft, hard = _at_most(soft, own_hard), _at_most(hard, own_hard)
            if (soft, hard) != reach:
                clamped.append(number)
        if (soft, hard) != (own_soft, own_hard):
            limits.append([number, soft, hard])
    return limits, clamped


def _at_most(value: int, bound: int) -> int:
    if bound == resource.RLIM_INFINITY:
        return value
    return bound if value == resource.RLIM_INFINITY else min(value, bound)


def _become_command(
    spec: dict[str, Any], stdio: tuple[int, int, int], tty: int | None, status: int
) -> NoReturn:
    """Turn this fresh child into the task's command; report the failing step through ``status``."""
    step = "start"
    try:
        os.setpgid(0, 0)
        if tty is not None:
            os.tcsetpgrp(tty, os.getpgrp())
        step = "limits"
        for group in spec["groups"]:
            os.write(group, b"0")
        for number, soft, hard in spec["rlimits"]:
            resource.setrlimit(number, (soft, hard))
        if spec["nice"] != os.getpriority(os.PRIO_PROCESS, 0):
            try:
                os.setpriority(os.PRIO_PROCESS, 0, spec["nice"])
            except PermissionError:  # a runner that was started nicer than this stays so
                pass
        step = "directory"
        os.chdir(spec["directory"])
        os.umask(spec["umask"])
        step = "start"
        # The status pipe and the descriptors may lie on 0-2 only if ours were closed; they are not.
        for target, fd in enumerate(stdio):
            os.dup2(fd, target)
        for fd in spec["closed_fds"]:
            os.close(fd)
        high = max(status, 3)
        os.closerange(3, high)
        os.closerange(high + 1, _MAX_FD)
        signal.set_wakeup_fd(-1)
        for number in range(1, signal.NSIG):
            if number not in (signal.SIGKILL, signal.SIGSTOP) and number not in (32, 33):
                ignored = number in spec["ignored_signals"]
                signal.signal(number, signal.SIG_IGN if ignored else signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        step = "exec"
        _exec(spec["argv"], spec["environment"])
    except BaseException as error:  # noqa: BLE001 - this process has no caller to raise to
        number = error.errno if isinstance(error, OSError) and error.errno else 0
        text = os.strerror(number) if number else f"{type(error).__name__}: {error}"
        os.write(status, pack({"refused": step, "errno": number, "message": text}))
    finally:
        os._exit(127)


def _exec(argv: list[bytes], block: bytes) -> None:
    """Replace this process, searching PATH as execvp does; raise ``OSError`` if nothing runs."""
    environment = dict(entry.split(b"=", 1) for entry in block.split(b"\0") if b"=" in entry[1:])
    name = argv[0]
    explicit = b"/" in name
    if explicit:
        candidates = [name]
    else:
        path = environment.get(b"PATH", os.fsencode(os.defpath))
        candidates = [(folder or b".") + b"/" + name for folder in path.split(b":")] if name else []
    # A file that is there but may not run (EACCES) says more than one that is not (ENOENT).
    failure = OSError(errno.ENOENT, os.strerror(errno.ENOENT))
    for candidate in candidates:
        try:
            os.execve(candidate, argv, environment)
        except OSError as error:
            if error.errno == errno.ENOEXEC:
                os.execve(b"/bin/sh", [b"/bin/sh", candidate, *argv[1:]], environment)
            passed_over = error.errno in (errno.ENOENT, errno.ENOTDIR) and not explicit
            if not passed_over and failure.errno == errno.ENOENT:
                failure = error
    raise failure
