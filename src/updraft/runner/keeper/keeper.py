"""The keeper's loop: tasks on one side, one agent on the other.

The agent may come and go; tasks do not notice.  All that a new agent needs is in one REPORT, and
everything after it is a change to what was reported, so nothing is queued for an absent agent.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import time

from updraft import settings
from updraft.runner.keeper import processes
from updraft.runner.keeper.cgroups import Slots
from updraft.runner.keeper.records import Records
from updraft.runner.keeper.task import IdleLeader, Task
from updraft.storage.segments import SegmentReader
from updraft.wire import frames
from updraft.wire.packing import unpack_dict
from updraft.wire.sockets import peer_uid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

    from updraft.runner.keeper.cgroups import Slot

IDLE_LEADERS = 2
"""Leaders forked ahead of need: a launch does not wait for a fork."""

_FORK_AFTER_SECONDS = 0.02
"""A short task has ended by then, and its end did not wait for the fork of the next leader."""

_MOST_UNSENT_BYTES = 32 << 20
"""An agent that hears nothing of so much is given up."""

_MAX_WAIT_SECONDS = 3600.0  # epoll takes no more than 24 days
_KILL_AGAIN_SECONDS = 0.05
_AGENT_BACKOFF_SECONDS = (0.0, 0.05, 0.2, 1.0, 2.0, 5.0)
_AGENT_HEALTHY_SECONDS = 10.0


class Keeper:
    """Owns this runner's tasks.  ``run`` returns when it was told to leave and no task is left."""

    def __init__(
        self,
        listener: socket.socket,
        folder: str,
        agent_command: list[str],
        *,
        cgroups: bool = True,
        shared: bool = False,
    ) -> None:
        self._shared = shared
        self._listener = listener
        self._folder = folder
        self._agent_command = agent_command
        self._slots = Slots(folder, wanted=cgroups)  # first: ends what a killed keeper left
        self._records = Records(os.path.join(folder, "attempts"))
        self._selector = selectors.DefaultSelector()
        self._tasks: dict[int, Task] = {}
        self._ended: dict[int, dict[str, Any]] = {}  # reports of attempts without a task
        self._idle: list[IdleLeader] = []
        self._isolation: ModuleType | None = None  # from the first task on that asks for it
        self._idle_isolated: list[IdleLeader] = []
        self._fork_at: float | None = None
        self._sweepers: set[int] = set()  # remove what tasks left in their temporary folders
        self._bereft: list[Task] = []  # their leaders were killed; what those left is being ended
        self._kill_again_at: float | None = None
        self._connection: _AgentConnection | None = None
        self._agent_pid: int | None = None
        self._agent_started = 0.0
        self._agent_failures = 0
        self._agent_due: float | None = 0.0
        self._leaving = False
        self._unrecorded: set[int] = set()
        self.identity = os.urandom(8).hex()
        self._release = settings.installed_release()
        self._adopt_records()
        self._remove_private_folders()
        if shared:
            self._prepare_isolation()

    def run(self) -> None:
        """Serve until told to leave."""
        processes.become_subreaper()
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        wake_read, wake_write = processes.wake_pipe()
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._selector.register(wake_read, selectors.EVENT_READ, lambda: self._reap(wake_read))
        while not (self._leaving and self._may_leave()):
            self._tick()
            if self._connection is not None:
                self._connection.flush()
            self._fill_leaders()
            for key, _ in self._selector.select(self._wait_seconds()):
                # An earlier callback of this round may have closed what a later key names.
                if self._selector.get_map().get(key.fd) is key:
                    key.data()
        self._slots.close()

    def _may_leave(self) -> bool:
        """Whether every end is stored; or recorded for the next keeper, with nobody left who would
        carry it to the server: a keeper that leaves starts no agent.
        """
        return not self._tasks or (self._connection is None and self._all_ends_are_recorded())

    def _all_ends_are_recorded(self) -> bool:
        return all(
            task.end is not None and attempt not in self._unrecorded
            for attempt, task in self._tasks.items()
        )

    # -- the agent

    def _accept(self) -> None:
        try:
            peer, _ = self._listener.accept()
        except OSError:
            return
        if peer_uid(peer) != os.geteuid():
            peer.close()
            return
        _AgentConnection(peer, self, self._selector)

    def welcome(self, connection: _AgentConnection) -> None:
        """An agent said hello: the newer one fences the older."""
        if self._connection is not None and self._connection is not connection:
            self._connection.close()
        self._connection = connection
        attempts = {attempt: task.report() for attempt, task in self._tasks.items()}
        attempts.update(self._ended)
        body = {
            "keeper": self.identity,
            "pid": os.getpid(),
            "release": self._release,
            "attempts": [{"attempt": attempt, **report} for attempt, report in attempts.items()],
        }
        connection.send(frames.message(frames.REPORT, body))

    def agent_gone(self, connection: _AgentConnection) -> None:
        """The agent's connection closed."""
        if self._connection is connection:
            self._connection = None

    def handle(self, kind: int, channel: int, offset: int, payload: bytes | memoryview) -> None:
        """Carry out one frame of the agent's."""
        attempt, stream = channel >> 2, channel & 3
        if kind == frames.SPAWN:
            self._spawn(attempt, unpack_dict(bytes(payload)))
            return
        if kind == frames.FORGET:
            for gone in unpack_dict(bytes(payload))["attempts"]:
                self._forget(gone)
            return
        if kind == frames.STOP:
            order = unpack_dict(bytes(payload))
            if order.get("unless_live"):
                self._leave_unless_live()
            else:
                self._leave(cancel=order["cancel"])
            return
        if kind == frames.LEASE:
            lease = unpack_dict(bytes(payload))
            for each in self._tasks.values():
                each.lease(lease["ms"], lease["grace_ms"])
            return
        task = self._tasks.get(attempt)
        if task is None or task.end is not None:
            return
        if kind == frames.DATA:
            task.receive_input(offset, payload)
        elif kind == frames.LIMIT:
            task.limit(stream, offset)
        elif kind == frames.EOF:
            task.end_input(offset)
        elif kind == frames.CLOSE:
            task.close_output(stream)
        elif kind == frames.SIGNAL:
            task.signal(unpack_dict(bytes(payload))["signal"])
        elif kind == frames.RESIZE:
            size = unpack_dict(bytes(payload))
            task.resize(size["rows"], size["columns"])
        elif kind == frames.KILL:
            order = unpack_dict(bytes(payload))
            task.kill(order["why"], order["grace_ms"] / 1000)
        elif kind == frames.DEADLINE:
            limit_ms = unpack_dict(bytes(payload))["limit_ms"]
            task.set_limit(limit_ms)

    def _spawn(self, attempt: int, spec: dict[str, Any]) -> None:
        # P2: whatever is repeated on the way here, an attempt starts once.
        if attempt in self._tasks or attempt in self._ended:
            return
        if "beside" in spec:
            task = self._tasks.get(spec["beside"])
            if task is None or task.over:
                self._refuse(attempt, spec, "the job is not running any more")
                return
            try:
                spec = _beside(task.spec, spec)
            except TypeError as error:  # a client's own words
                self._refuse(attempt, spec, f"the runner cannot start it: {error}")
                return
        try:
            self._records.intend(attempt, {"job": spec["job"], "folder": spec["folder"]})
        except FileExistsError:
            return
        except OSError as error:
            self._refuse(attempt, spec, f"the runner cannot record it: {error.strerror}")
            return
        task = None
        try:
            if spec.get("isolation") is None and self._shared:
                raise ValueError("it is shared, and the task does not say whose it is")
            if spec.get("isolation") is not None and "beside" not in spec:
                spec = self._isolate(attempt, spec)
            task = Task(attempt, spec, self._selector, self)
            task.slot = self._take_slot(spec)
            task.start(self._take_leader(spec))
            self._tasks[attempt] = task
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it, the others go on
            if task is not None:
                task.abandon()
                self._free_slot(task)
            self._remove_private_folder(attempt)
            why = error.strerror if isinstance(error, OSError) else repr(error)
            why = str(error) if isinstance(error, ValueError) else why
            self._refuse(attempt, spec, f"the runner cannot start it: {why}")

    def _take_leader(self, spec: dict[str, Any]) -> IdleLeader:
        isolated = spec.get("isolation") is not None
        if isolated and "beside" in spec:
            leader = self._tasks[spec["beside"]].leader
            if leader is None:
                raise ValueError("the job is not running any more")
            return IdleLeader(beside=leader)
        idle = self._idle_isolated if isolated else self._idle
        if isolated and len(idle) > 1:
            self._fork_at = time.monotonic() + _FORK_AFTER_SECONDS
        while idle:
            leader = idle.pop()
            if leader.alive():
                return leader
            leader.socket.close()
        return IdleLeader(isolated=isolated)

    def _take_slot(self, spec: dict[str, Any]) -> Slot | None:
        if "beside" in spec:
            return self._tasks[spec["beside"]].slot
        slot = self._slots.take(spec["memory_bytes"], spec["cpus_milli"])
        if slot is not None and self._isolation is not None:
            own = spec.get("isolation")
            slot.limit_devices(own and self._isolation.allowed_devices(own["devices"]))
        return slot

    # -- isolated tasks

    def _isolate(self, attempt: int, spec: dict[str, Any]) -> dict[str, Any]:
        """Return the spec with what this keeper adds to it.  Raises ``ValueError``, ``OSError``."""
        from updraft.runner.keeper import temporary  # noqa: PLC0415

        isolation = self._prepare_isolation()
        isolation.check(spec["isolation"])
        added = {
            "private": temporary.make(self._folder, attempt),
            "hidden": [os.fsencode(self._folder), *spec["isolation"]["hidden"]],
        }
        return {**spec, "isolation": {**spec["isolation"], **added}}

    def _prepare_isolation(self) -> ModuleType:
        if self._isolation is None:
            from updraft.runner.keeper import isolation  # noqa: PLC0415 - most keepers need none

            self._isolation = isolation
            self._slots.limit_devices()
        return self._isolation

    def _remove_private_folder(self, attempt: int) -> None:
        if self._isolation is None:
            return
        from updraft.runner.keeper import temporary  # noqa: PLC0415

        path = temporary.folder_of(self._folder, attempt)
        if not temporary.remove_if_empty(path):
            # That takes a while, which is not to be the other tasks'.
            self._sweepers |= temporary.remove_aside([path])

    def _remove_private_folders(self) -> None:
        """Remove what tasks of a killed keeper left."""
        if os.path.isdir(os.path.join(self._folder, "private")):
            from updraft.runner.keeper import temporary  # noqa: PLC0415

            self._sweepers |= temporary.remove_aside(temporary.left_over(self._folder))

    def _free_slot(self, task: Task | None) -> None:
        # One that runs beside a task is in that task's slot, and ends with it.
        if task is not None and task.slot is not None and "beside" not in task.spec:
            self._slots.give_back(task.slot)

    def _refuse(self, attempt: int, spec: dict[str, Any], why: str) -> None:
        end = {"refused": "start", "message": why, "errno": 0, "stdout": 0, "stderr": 0}
        self._ended[attempt] = {"job": spec["job"], "folder": spec["folder"], "end": end}
        self._send(frames.message(frames.EXITED, end, frames.stream_channel(attempt, 0)))

    def _forget(self, attempt: int) -> None:
        task = self._tasks.get(attempt)
        if task is not None and task.end is None:
            return
        self._tasks.pop(attempt, None)
        self._ended.pop(attempt, None)
        self._unrecorded.discard(attempt)
        self._records.forget(attempt)

    def _leave(self, *, cancel: bool) -> None:
        if not self._leaving:
            self._leaving = True
            self._agent_due = None
            self._selector.unregister(self._listener)
            self._listener.close()
        if cancel:
            for task in self._tasks.values():
                task.kill("stop", task.grace_seconds)

    def _leave_unless_live(self) -> None:
        """Leave although no server stores the ends of our tasks: the next keeper tells them."""
        if self._all_ends_are_recorded():
            self._tasks.clear()
            self._leave(cancel=False)

    # -- what tasks say (task.Events)

    def grew(self, channel: int, length: int) -> None:
        """An output stream has grown."""
        if self._connection is not None:
            self._connection.grew(channel, length)

    def took(self, channel: int, offset: int) -> None:
        """Input was written up to ``offset``."""
        if self._connection is not None:
            self._connection.took(channel, offset)

    def input_closed(self, channel: int) -> None:
        """The command reads no more input."""
        self._send(frames.frame(frames.CLOSE, channel))

    def said(self, kind: int, task: Task, body: dict[str, Any]) -> None:
        """A leader's message for the server."""
        self._send(frames.message(kind, body, frames.stream_channel(task.attempt, 0)))

    def ended(self, task: Task) -> None:
        """A task came to its end: its processes are gone and its output is stored."""
        assert task.end is not None  # noqa: S101 - an ended task has an end
        if task.slot is not None and "beside" not in task.spec:
            # What one beside a task used, or lost for want of memory, counts as that task's.
            task.end.update(task.slot.usage())
        self._free_slot(task)
        self._record_end(task.attempt, task.end)
        leader = task.release_leader()
        if leader is not None:
            self._idle.append(leader)
        if "beside" not in task.spec:
            self._remove_private_folder(task.attempt)
        self._send(frames.message(frames.EXITED, task.end, frames.stream_channel(task.attempt, 0)))

    def _record_end(self, attempt: int, end: dict[str, Any]) -> None:
        try:
            self._records.end(attempt, end)
        except OSError:
            # It is in memory; only a crash of ours before the FORGET would miss it.
            self._unrecorded.add(attempt)

    def _send(self, data: bytes) -> None:
        if self._connection is not None:
            self._connection.send(data)

    # -- time and processes

    def _tick(self) -> None:
        now = time.monotonic()
        for task in self._tasks.values():
            if (due := task.next_tick()) is not None and due <= now:
                task.tick(now)
        if self._kill_again_at is not None and now >= self._kill_again_at:
            self._end_orphans()
        if self._agent_due is not None and now >= self._agent_due and self._agent_pid is None:
            self._start_agent(now)

    def _wait_seconds(self) -> float | None:
        due = [at for task in self._tasks.values() if (at := task.next_tick()) is not None]
        if self._agent_due is not None and self._agent_pid is None:
            due.append(self._agent_due)
        if self._kill_again_at is not None:
            due.append(self._kill_again_at)
        if self._fork_at is not None:
            due.append(self._fork_at)
        if self._slots.again_at is not None and not self._busy():
            due.append(self._slots.again_at)
        return min(max(0.0, min(due) - time.monotonic()), _MAX_WAIT_SECONDS) if due else None

    def _fill_leaders(self) -> None:
        if self._leaving or self._busy():
            return
        isolated = self._isolation is not None
        idle = self._idle_isolated if isolated else self._idle
        if self._fork_at is not None and idle:
            if time.monotonic() < self._fork_at:
                self._slots.tidy()
                return
            self._fork_at = None
        try:
            while len(idle) < IDLE_LEADERS:
                idle.append(IdleLeader(isolated=isolated))
        except OSError:
            pass  # no more processes or descriptors: the next turn tries again
        self._fork_at = None
        while len(self._idle) > 4 * IDLE_LEADERS:
            self._idle.pop().socket.close()
        self._slots.tidy()

    def _busy(self) -> bool:
        # Fork when nothing waits for us: a task that is starting comes first.
        return any(task.pid is None and task.end is None for task in self._tasks.values())

    def _start_agent(self, now: float) -> None:
        self._agent_started = now
        try:
            self._agent_pid = os.posix_spawn(
                self._agent_command[0],
                self._agent_command,
                os.environ,
                setsigdef=[signal.SIGPIPE],
            )
        except OSError:
            self._agent_ended()  # no more processes, or it is being upgraded: later

    def _reap(self, wake: int) -> None:
        try:
            while os.read(wake, 512):
                pass
        except BlockingIOError:
            pass
        dead: list[int] = []
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            dead.append(pid)
        if self._agent_pid in dead:
            self._agent_ended()
        self._sweepers.difference_update(dead)
        leaders = {task.leader.pid: task for task in self._tasks.values() if task.leader}
        for pid in dead:
            if pid in leaders:
                leaders[pid].hear_the_last()
                if not leaders[pid].over:
                    self._bereft.append(leaders[pid])
        if self._bereft:
            self._end_orphans()
        for idle in (self._idle, self._idle_isolated):
            idle[:] = [leader for leader in idle if leader.pid not in dead]

    def _agent_ended(self) -> None:
        self._agent_pid = None
        now = time.monotonic()
        healthy = now - self._agent_started > _AGENT_HEALTHY_SECONDS
        self._agent_failures = 0 if healthy else self._agent_failures + 1
        step = min(self._agent_failures, len(_AGENT_BACKOFF_SECONDS) - 1)
        if not self._leaving:
            self._agent_due = now + _AGENT_BACKOFF_SECONDS[step]

    def _end_orphans(self) -> None:
        """End what killed leaders left to us, their subreaper; their tasks end after the last."""
        ours = {
            task.leader.pid
            for task in self._tasks.values()
            if task.leader and task.leader.pid is not None
        }
        for leader in (*self._idle, *self._idle_isolated):
            if leader.pid is not None:
                ours.add(leader.pid)
        ours |= self._sweepers
        if self._agent_pid is not None:
            ours.add(self._agent_pid)
        orphans = processes.orphans(ours)
        processes.signal_all(orphans, signal.SIGKILL)
        if orphans:
            self._kill_again_at = time.monotonic() + _KILL_AGAIN_SECONDS
            return
        self._kill_again_at = None
        bereft, self._bereft = self._bereft, []
        for task in bereft:
            task.tree_ended()

    def _adopt_records(self) -> None:
        """Take over what an earlier keeper left: its ends, and its unfinished attempts as lost."""
        for attempt, (intent, end) in self._records.load().items():
            if end is None:
                end = {"lost": "its keeper was killed", "at": time.time_ns(), **_stored(intent)}
                self._record_end(attempt, end)
            self._ended[attempt] = {
                "job": intent.get("job", ""),
                "folder": intent.get("folder", b""),
                "end": end,
            }


def _stored(intent: dict[str, Any]) -> dict[str, int]:
    """Return the lengths of the output that an earlier keeper stored of an attempt."""
    folder = os.fsdecode(intent.get("folder", b""))
    return {name: SegmentReader(folder, name).length() for name in ("stdout", "stderr")}


def _beside(task: dict[str, Any], order: dict[str, Any]) -> dict[str, Any]:
    """Return the spec of a process in a task's surroundings, with a terminal of its own."""
    environment = b"\0".join([task["environment"], *order["set_environment"]])
    # Whatever is ordered, it is as isolated as the task is.
    return {**task, **order, "environment": environment, "isolation": task.get("isolation")}


class _AgentConnection:
    """One agent's connection.  Growth of streams is coalesced: only the latest length is sent."""

    def __init__(self, peer: socket.socket, keeper: Keeper, selector: selectors.BaseSelector):
        self._peer = peer
        self._keeper = keeper
        self._selector = selector
        self._reader = frames.FrameReader()
        self._out = bytearray()
        self._grown: dict[int, int] = {}
        self._taken: dict[int, int] = {}
        self._known = False
        self._mask = selectors.EVENT_READ
        peer.setblocking(False)
        selector.register(peer, self._mask, self._ready)

    def send(self, data: bytes) -> None:
        self._out += data
        if len(self._out) > _MOST_UNSENT_BYTES:
            self.close()  # the next one is told all that this one did not hear

    def grew(self, channel: int, length: int) -> None:
        self._grown[channel] = length

    def took(self, channel: int, offset: int) -> None:
        self._taken[channel] = offset

    def flush(self) -> None:
        """Send what the socket takes."""
        try:
            while self._out or self._take_growth():
                count = self._peer.send(self._out)
                del self._out[:count]
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        mask = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._out else 0)
        if mask != self._mask:
            self._mask = mask
            self._selector.modify(self._peer, mask, self._ready)

    def _take_growth(self) -> bool:
        """Turn the latest lengths into frames; return whether there were any."""
        for channel, length in self._grown.items():
            self._out += frames.frame(frames.GREW, channel, length)
        for channel, offset in self._taken.items():
            self._out += frames.frame(frames.ACK, channel, offset)
        self._grown.clear()
        self._taken.clear()
        return bool(self._out)

    def close(self) -> None:
        """End the connection."""
        if self._peer.fileno() >= 0:
            self._selector.unregister(self._peer)
            self._peer.close()
        self._keeper.agent_gone(self)

    def _ready(self) -> None:
        try:
            chunk = self._peer.recv(256 * 1024)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        if not chunk:
            self.close()
            return
        try:
            for kind, channel, offset, payload in self._reader.feed(chunk):
                if kind == frames.HELLO:
                    self._known = True
                    self._keeper.welcome(self)
                elif self._known:
                    self._keeper.handle(kind, channel, offset, payload)
        except Exception:  # noqa: BLE001 - whatever an agent says, the tasks go on
            self.close()
