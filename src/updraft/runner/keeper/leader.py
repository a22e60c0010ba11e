"""A task's leader: the session leader, parent and subreaper of one task's processes.

Forked ahead of need from the keeper, one per running task.  The command runs as the leader's
child, in a process group of its own within the leader's session: a stopped command then has a
parent in its session, which is what lets the kernel stop it (POSIX: not an orphaned process group),
and whatever the command leaves behind is the leader's to end.  A leader whose keeper dies ends its
tree.

Talks frames with the keeper over a socket pair: SPAWN (with the task's descriptors), SIGNAL and
KILL come in; STARTED, STOPPED, CONTINUED and EXITED go out.

An isolated task's leader is also the init of a PID namespace (see ``isolation``), leads one task
only, and on BESIDE forks another leader in there, for a command that runs beside its own.
"""

from __future__ import annotations

import fcntl
import os
import resource
import select
import signal
import socket
import termios
import time

from updraft.runner.keeper import command, processes
from updraft.wire import frames
from updraft.wire.packing import unpack_dict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from updraft.runner.keeper.isolation import View

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
BESIDE = 60
"""A frame between keeper and leader only: fork a leader for the socket that comes along."""

_KILL_AGAIN_SECONDS = 0.05
_SPARE_SECONDS = 1.0
_RSS_ERROR_KIB = 1024  # the kernel counts in batches on each CPU
_MAX_WAIT_SECONDS = 3600.0  # poll takes no more than 24 days


def fork_leader(*, isolated: bool = False) -> tuple[int, socket.socket]:
    """Fork a leader; return its process id and the keeper's end of the socket pair.

    Raises ``OSError``, also where it cannot be ``isolated``.
    """
    ours, theirs = _pair(isolated)
    try:
        pid = command.isolation().fork_init() if isolated else os.fork()
    except OSError:
        ours.close()
        theirs.close()
        raise
    if pid == 0:
        _lead(theirs, "own" if isolated else "")
    theirs.close()
    return pid, ours


def fork_beside(leader: socket.socket) -> socket.socket:
    """Have an isolated task's leader fork another one; return the keeper's end of its socket."""
    ours, theirs = _pair(isolated=True)
    with theirs:
        socket.send_fds(leader, [frames.message(BESIDE, {})], [theirs.fileno()])
    return ours


def _pair(isolated: bool) -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    ours.setblocking(False)
    if isolated:  # the kernel translates process ids that come along
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    return ours, theirs


def _lead(theirs: socket.socket, view: str) -> NoReturn:
    """Be a leader, in this fresh child; ``view``: whether to make its own, or it is in one."""
    status = 1
    try:
        # The keeper's other descriptors (locks, ptys, other tasks' pipes) are not ours to hold.
        keep = theirs.detach()
        os.dup2(keep, 3)
        os.closerange(4, command.MAX_FD)
        _Leader(socket.socket(fileno=3), view).run()
        status = 0
    finally:
        os._exit(status)


class _KeeperGone(Exception):
    """The keeper's end of the socket closed."""


class _Leader:
    def __init__(self, keeper: socket.socket, view: str) -> None:
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
        self._lease_until: float | None = None
        self._lease_grace_seconds = 0.0
        self._lost = ""
        self._once = False
        self._isolated = bool(view)
        self._beside: frozenset[int] = frozenset()  # leaders that we forked
        self._spare_until: float | None = None
        self._view: View | None = None
        self._view_failure: OSError | None = None
        if view == "own":
            try:
                self._view = command.isolation().View()
            except OSError as error:  # told to the task that comes
                self._view_failure = error
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
                self._end_if_out_of_touch()
                self._reap()
        except (_KeeperGone, ConnectionError):
            self._end_for_good()

    def _wait_ms(self) -> int | None:
        due = [at for at in (self._kill_at, self._lease_until) if at is not None]
        if not due:
            return None
        seconds = min(min(due) - time.monotonic(), _MAX_WAIT_SECONDS)
        return max(0, int(seconds * 1000) + 1)

    def _end_if_out_of_touch(self) -> None:
        """End a fenced task whose lease ran out: somebody else may be given its work soon."""
        if self._lease_until is None or time.monotonic() < self._lease_until:
            return
        self._lease_until = None
        if self._main is not None:
            self._lost = "its runner was out of touch for longer than its lease"
            self._end_tree(min(self._grace_seconds, self._lease_grace_seconds))

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
                elif kind == BESIDE:
                    self._fork_beside()
                elif kind == frames.SIGNAL:
                    self._signal(body["signal"])
                elif kind == frames.KILL:
                    self._end_tree(body["grace_ms"] / 1000)
                elif kind == frames.LEASE:
                    self._lease_until = time.monotonic() + body["ms"] / 1000
                    self._lease_grace_seconds = body["grace_ms"] / 1000

    def _spawn(self, spec: dict[str, Any]) -> None:
        # Descriptors in the order that task.py sends them.
        fds, self._fds = self._fds[: spec["fds"]], self._fds[spec["fds"] :]
        stdin, stdout, stderr = fds[:3]
        self._once = spec["tty"] or self._isolated
        self._grace_seconds = spec["grace_ms"] / 1000
        self._kill_at = self._lease_until = None  # a word about an earlier task may come late
        self._main_status = None
        self._cpu_seconds, self._max_rss = 0.0, None
        root = os.geteuid() == 0 and spec["isolation"] is None
        limits, clamped = command.reachable_limits(spec["rlimits"], root=root)
        groups = fds[4 if spec["tty"] else 3 :]
        status: list[int] = []
        step = "isolation"
        try:
            self._enclose(spec["isolation"])
            step = "start"
            status += os.pipe()
            if spec["tty"]:
                self._tty = fds[3]
                fcntl.ioctl(self._tty, termios.TIOCSCTTY, 0)
            pid, unjoined = processes.fork_into(groups) if spec["cloned"] else (os.fork(), groups)
        except (OSError, ValueError) as error:  # no more processes, or descriptors
            for fd in (*fds, *status):
                os.close(fd)
            self._tty = None
            self._send(frames.EXITED, command.refusal(step, error))
            return
        status_read, status_write = status
        if pid == 0:
            spec["rlimits"], spec["groups"] = limits, unjoined
            command.become(spec, (stdin, stdout, stderr), self._tty, status_write)
        os.close(status_write)
        for fd in (*fds[:3], *groups):
            os.close(fd)
        with open(status_read, "rb") as status_file:
            failure = status_file.read()
        moved = failure.startswith(command.MOVED)
        if failure := failure.removeprefix(command.MOVED):
            os.waitpid(pid, 0)
            self._close_tty()
            self._send(frames.EXITED, unpack_dict(failure))
            return
        self._main = pid
        body = {"pid": pid, "at": time.time_ns(), "clamped_limits": clamped}
        if moved:
            body["directory"] = spec["isolation"]["workspace"]
        self._send(frames.STARTED, body, about=pid)

    def _enclose(self, isolation: dict[str, Any] | None) -> None:
        """Show the task its own folders.  Raises ``OSError`` or ``ValueError``."""
        if self._view_failure is not None:
            raise self._view_failure
        if isolation is None:
            return
        if not self._isolated:
            raise ValueError("its leader is in no namespace of its own")
        if self._view is not None:
            self._view.enclose(isolation)
        isolation["groups"] += command.isolation().device_groups(isolation["devices"])

    def _fork_beside(self) -> None:
        if not self._fds:  # no room for one more descriptor: the keeper sees the socket close
            return
        theirs, self._fds = self._fds[0], self._fds[1:]
        try:
            pid = os.fork()
        except OSError:
            pid = -1  # the keeper sees the socket close
        if pid == 0:
            _lead(socket.socket(fileno=theirs), "another's")
        os.close(theirs)
        self._beside |= {pid}

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
        if grace_seconds > 0:
            processes.end_descendants(signal.SIGTERM)
        else:
            self._kill_descendants()
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
            self._kill_descendants()
            self._kill_at = time.monotonic() + _KILL_AGAIN_SECONDS

    def _kill_descendants(self) -> None:
        # A leader beside is to tell how its command ended, and then ends by itself.
        now = time.monotonic()
        if self._spare_until is None:
            self._spare_until = now + _SPARE_SECONDS
        spared = self._beside if now < self._spare_until else frozenset()
        processes.end_descendants(signal.SIGKILL, spared)

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
        self._kill_at = self._lease_until = None
        lost, self._lost = ({"lost": self._lost} if self._lost else {}), ""
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
                **lost,
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

    def _send(self, kind: int, body: dict[str, Any], about: int | None = None) -> None:
        # A few small messages a task: they fit the socket's buffer, and the keeper always reads.
        self._keeper.setblocking(True)
        try:
            if about is not None and self._isolated:
                # In a PID namespace our number of a process is not the keeper's.
                credentials = command.isolation().credentials(about)
                self._keeper.sendmsg([frames.message(kind, body)], credentials)
                return
            self._keeper.sendall(frames.message(kind, body))
        finally:
            self._keeper.setblocking(False)
