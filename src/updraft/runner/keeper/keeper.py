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
from updraft.runner.keeper.agent_connection import AgentConnection
from updraft.runner.keeper.agent_process import AgentProcess
from updraft.runner.keeper.cgroups import Slots
from updraft.runner.keeper.crews import Crews
from updraft.runner.keeper.isolating import Isolating
from updraft.runner.keeper.leaders import IdleLeaders, Leader
from updraft.runner.keeper.records import Records
from updraft.runner.keeper.task import Task
from updraft.storage.segments import SegmentReader
from updraft.wire import frames
from updraft.wire.packing import unpack_dict
from updraft.wire.sockets import peer_uid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from updraft.runner.keeper.cgroups import Slot

_MAX_WAIT_SECONDS = 3600.0  # epoll takes no more than 24 days
_KILL_AGAIN_SECONDS = 0.05
_LAST_WORDS_SECONDS = 5.0
"""For the agent to carry the last ends to the server, once this keeper was asked to end."""


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
        self._agent = AgentProcess(agent_command)
        self._slots = Slots(folder, wanted=cgroups)  # first: ends what a killed keeper left
        self._records = Records(os.path.join(folder, "attempts"))
        self._selector = selectors.DefaultSelector()
        self._tasks: dict[int, Task] = {}
        self._ended: dict[int, dict[str, Any]] = {}  # reports of attempts without a task
        self._crews = Crews(self, os.path.join(folder, "crews"))
        self._leaders = IdleLeaders()
        self._isolating = Isolating(folder, self._leaders, self._slots)
        self._bereft: list[Task] = []  # their leaders were killed; what those left is being ended
        self._kill_again_at: float | None = None
        self._connection: AgentConnection | None = None
        self._spare: int | None = None  # a descriptor for an agent, when tasks have all others
        self._leaving = False
        self._asked_to_end = False
        self._silent_at: float | None = (
            None  # what was not carried to the server by then, is told later
        )
        self._status: int | None = None  # to exit with, when nobody asks for the ends any more
        self.again = False
        """Whether it leaves for a keeper of the release that is installed now."""
        self._unrecorded: set[int] = set()
        self.identity = os.urandom(8).hex()
        self._release = settings.installed_release()
        self._adopt_records()
        self._isolating.remove_left_over()
        if shared:
            self._isolating.prepare()

    def run(self) -> int:
        """Serve until told to leave; return the exit status."""
        processes.become_subreaper()
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        wake_read, wake_write = processes.wake_pipe()
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask_to_end)
        self._selector.register(wake_read, selectors.EVENT_READ, lambda: self._reap(wake_read))
        while not (self._leaving and self._may_leave()):
            if self._asked_to_end and self._silent_at is None:
                self._silent_at = time.monotonic() + _LAST_WORDS_SECONDS
                self._leave(cancel=True)
            self._tick()
            if self._connection is not None:
                self._connection.flush()
            self._prepare_for_more()
            for key, _ in self._selector.select(self._wait_seconds()):
                # An earlier callback of this round may have closed what a later key names.
                if self._selector.get_map().get(key.fd) is key:
                    key.data()
        self._crews.tell()
        if self._connection is not None:
            self._connection.flush()  # the last ends, whose files the agent removes
        if self._status is not None:
            for attempt in [*self._tasks, *self._ended]:
                self._forget(attempt)
        if self._silent_at is not None and self._agent.pid is not None:
            # It would take us for one that was killed, and start another.
            processes.signal_all([self._agent.pid], signal.SIGKILL)
        self._crews.close()
        self._slots.close()
        return self._status or 0

    def _ask_to_end(self, *_: object) -> None:
        self._asked_to_end = True

    def _may_leave(self) -> bool:
        """Whether every end is stored; or recorded for the next keeper, with nobody left who would
        carry it to the server: a keeper that leaves starts no agent.
        """
        if self._status is not None:  # nobody asks for the ends any more
            ended = all(task.end is not None for task in self._tasks.values())
            return ended and self._crews.is_over
        silent = self._silent_at is not None and time.monotonic() >= self._silent_at
        return (not self._tasks and self._crews.is_empty) or (
            (self._connection is None or silent) and self._all_ends_are_recorded()
        )

    def _all_ends_are_recorded(self) -> bool:
        return self._crews.is_over and all(
            task.end is not None and attempt not in self._unrecorded
            for attempt, task in self._tasks.items()
        )

    # -- the agent

    def _accept(self) -> None:
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None
        try:
            peer, _ = self._listener.accept()
        except OSError:
            return
        if peer_uid(peer) != os.geteuid():
            peer.close()
            return
        AgentConnection(peer, self, self._selector)

    def welcome(self, connection: AgentConnection) -> None:
        """An agent said hello: the newer one fences the older."""
        if self._connection is not None and self._connection is not connection:
            self._connection.close()
        self._connection = connection
        attempts = [
            {"attempt": attempt, **self._crew_of(attempt), **task.report()}
            for attempt, task in self._tasks.items()
            if task.end is None or not self._crews.is_ours(attempt)
        ]
        attempts += [{"attempt": attempt, **report} for attempt, report in self._ended.items()]
        attempts += self._crews.report()
        body = {
            "keeper": self.identity,
            "pid": os.getpid(),
            "release": self._release,
            "attempts": attempts,
        }
        connection.send(frames.message(frames.REPORT, body))

    def agent_gone(self, connection: AgentConnection) -> None:
        """The agent's connection closed."""
        if self._connection is connection:
            self._connection = None

    def handle(self, kind: int, channel: int, offset: int, payload: bytes | memoryview) -> None:
        """Carry out one frame of the agent's."""
        attempt, stream = channel >> 2, channel & 3
        if kind == frames.SPAWN:
            if not self.again:  # the server grants it again to whoever comes after us
                self._spawn(attempt, unpack_dict(bytes(payload)))
            return
        if kind == frames.FORGET:
            for gone in unpack_dict(bytes(payload))["attempts"]:
                self._forget(gone)
            return
        if kind in (frames.CREW, frames.TASKS):
            if not (self.again or self._leaving):
                take = self._crews.open if kind == frames.CREW else self._crews.feed
                take(attempt, unpack_dict(bytes(payload)))
            return
        if kind in (frames.KILL, frames.DEADLINE, frames.SIGNAL) and self._crews.holds(attempt):
            self._of_crew(kind, attempt, unpack_dict(bytes(payload)))
            return
        if kind == frames.STOP:
            order = unpack_dict(bytes(payload))
            if order.get("unless_live"):
                self._leave_unless_live()
            elif order.get("again"):
                if not self._tasks and self._crews.is_empty:
                    self.again = True
                    self._leave(cancel=False)
            else:
                self._status = order.get("status")
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

    def _crew_of(self, attempt: int) -> dict[str, Any]:
        return self._crews.identity(attempt) if self._crews.is_ours(attempt) else {}

    def _of_crew(self, kind: int, number: int, order: dict[str, Any]) -> None:
        """Carry out what concerns a crew, or a task of one."""
        if kind == frames.KILL:
            self._crews.end(number, order["why"], order["grace_ms"] / 1000)
        elif number in self._tasks:
            if kind == frames.SIGNAL:
                self._tasks[number].signal(order["signal"])
        elif kind == frames.DEADLINE:
            for attempt in self._crews.limit(number, order["limit_ms"]):
                self._tasks[attempt].set_limit(order["limit_ms"])
        elif self._crews.is_ours(number):
            self._crews.signal(number, order["signal"])

    # -- what crews ask for (crews.Host)

    @property
    def is_shared(self) -> bool:
        """Whether this keeper starts isolated tasks only."""
        return self._shared

    @property
    def is_ending(self) -> bool:
        """Whether this keeper was asked to end, with its machine or by its administrator."""
        return self._silent_at is not None

    def seen_by_others(self, end: dict[str, Any]) -> dict[str, Any]:
        """Return an end as what it is elsewhere: lost with its runner, and may be tried again."""
        if self.is_ending and end.get("why") == "stop" and "unstarted" not in end:
            return {**end, "lost": "its runner was stopped"}
        return end

    def start(self, attempt: int, spec: dict[str, Any]) -> None:
        """Start a task of a crew."""
        self._spawn(attempt, spec)

    def kill(self, attempt: int, why: str, grace_seconds: float) -> None:
        """End a task of a crew."""
        task = self._tasks.get(attempt)
        if task is not None and task.end is None:
            task.kill(why, grace_seconds)

    def watch(self, fd: int, ready: Callable[[], None]) -> None:
        """Call ``ready`` whenever there is something to read."""
        self._selector.register(fd, selectors.EVENT_READ, ready)

    def unwatch(self, fd: int) -> None:
        """Do so no more."""
        self._selector.unregister(fd)

    def take_slot(self, spec: dict[str, Any]) -> Slot | None:
        """Return a control group for a worker of a crew."""
        return self._take_slot(spec)

    def give_slot(self, slot: Slot | None) -> None:
        """Take it back; its processes are about to go."""
        if slot is not None:
            self._slots.give_back(slot)

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
            intent = {"job": spec["job"], "folder": spec["folder"], **self._crew_of(attempt)}
            self._records.intend(attempt, intent)
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
                spec = self._isolating.isolate(attempt, spec)
            task = Task(attempt, spec, self._selector, self)
            task.slot = self._take_slot(spec)
            task.start(self._take_leader(spec))
            self._tasks[attempt] = task
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it, the others go on
            if task is not None:
                task.abandon()
                self._free_slot(task)
            self._isolating.remove(attempt)
            why = error.strerror if isinstance(error, OSError) else repr(error)
            why = str(error) if isinstance(error, ValueError) else why
            self._refuse(attempt, spec, f"the runner cannot start it: {why}")

    def _take_leader(self, spec: dict[str, Any]) -> Leader:
        isolated = spec.get("isolation") is not None
        if isolated and "beside" in spec:
            leader = self._tasks[spec["beside"]].leader
            if leader is None:
                raise ValueError("the job is not running any more")
            return Leader(beside=leader)
        return self._leaders.take(isolated=isolated)

    def _take_slot(self, spec: dict[str, Any]) -> Slot | None:
        if "beside" in spec:
            return self._tasks[spec["beside"]].slot
        slot = self._slots.take(spec["memory_bytes"], spec["cpus_milli"])
        if slot is not None:
            self._isolating.limit_devices(slot, spec)
        return slot

    def _free_slot(self, task: Task | None) -> None:
        # One that runs beside a task is in that task's slot, and ends with it.
        if task is not None and task.slot is not None and "beside" not in task.spec:
            self._slots.give_back(task.slot)

    def _refuse(self, attempt: int, spec: dict[str, Any], why: str) -> None:
        end = {"refused": "start", "message": why, "errno": 0, "stdout": 0, "stderr": 0}
        if self._crews.is_ours(attempt):
            self._crews.ended(attempt, end)
            return
        self._ended[attempt] = {"job": spec["job"], "folder": spec["folder"], "end": end}
        self.send(frames.message(frames.EXITED, end, frames.stream_channel(attempt, 0)))

    def _forget(self, attempt: int) -> None:
        task = self._tasks.get(attempt)
        if task is not None and task.end is None:
            return
        self._tasks.pop(attempt, None)
        self._ended.pop(attempt, None)
        self._crews.forget(attempt)
        self._unrecorded.discard(attempt)
        self._records.forget(attempt)

    def _leave(self, *, cancel: bool) -> None:
        if not self._leaving:
            self._leaving = True
            self._agent.leave()
            self._selector.unregister(self._listener)
            self._listener.close()
        self._crews.end_all("stop" if cancel else "recall")
        if cancel:
            for task in self._tasks.values():
                task.kill("stop", task.grace_seconds)

    def _leave_unless_live(self) -> None:
        """Leave although no server stores the ends of our tasks: the next keeper tells them."""
        self._crews.end_all("recall")
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
        self.send(frames.frame(frames.CLOSE, channel))

    def said(self, kind: int, task: Task, body: dict[str, Any]) -> None:
        """A leader's message for the server."""
        if self._crews.is_ours(task.attempt):
            if kind == frames.STARTED:
                self._crews.started(task)
            return
        self.send(frames.message(kind, body, frames.stream_channel(task.attempt, 0)))

    def ended(self, task: Task) -> None:
        """A task came to its end: its processes are gone and its output is stored."""
        assert task.end is not None  # noqa: S101 - an ended task has an end
        task.end.update(self.seen_by_others(task.end))
        if task.slot is not None and "beside" not in task.spec:
            # What one beside a task used, or lost for want of memory, counts as that task's.
            task.end.update(task.slot.usage())
        self._free_slot(task)
        self._record_end(task.attempt, task.end)
        leader = task.release_leader()
        if leader is not None:
            self._leaders.give_back(leader)
        if "beside" not in task.spec:
            self._isolating.remove(task.attempt)
        if self._crews.is_ours(task.attempt):
            del self._tasks[task.attempt]
            self._crews.ended(task.attempt, task.end)
            return
        self.send(frames.message(frames.EXITED, task.end, frames.stream_channel(task.attempt, 0)))

    def _record_end(self, attempt: int, end: dict[str, Any]) -> None:
        try:
            self._records.end(attempt, end)
        except OSError:
            # It is in memory; only a crash of ours before the FORGET would miss it.
            self._unrecorded.add(attempt)

    def send(self, data: bytes) -> None:
        """Send whole frames to the agent, if one is there."""
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
        if self._crews.due is not None and self._crews.due <= now:
            self._crews.tell()
        self._agent.start_if_due(now)

    def _wait_seconds(self) -> float | None:
        due = [at for task in self._tasks.values() if (at := task.next_tick()) is not None]
        silent = self._silent_at if self._all_ends_are_recorded() else None
        ours = (
            self._crews.due,
            self._agent.due,
            self._kill_again_at,
            self._leaders.fork_at,
            silent,
        )
        due += [at for at in ours if at is not None]
        if self._slots.again_at is not None and not self._busy():
            due.append(self._slots.again_at)
        return min(max(0.0, min(due) - time.monotonic()), _MAX_WAIT_SECONDS) if due else None

    def _prepare_for_more(self) -> None:
        if not self._leaving and not self._busy():
            self._keep_a_descriptor()
            self._leaders.fill()
            self._slots.tidy()

    def _keep_a_descriptor(self) -> None:
        if self._spare is None:
            try:
                self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                return

    def _busy(self) -> bool:
        # Fork when nothing waits for us: a task that is starting comes first.
        return any(task.pid is None and task.end is None for task in self._tasks.values())

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
        if self._agent.pid in dead:
            self._agent.ended()
        self._isolating.sweepers.difference_update(dead)
        if self._crews.died(dead):
            self._end_orphans()
        leaders = {task.leader.pid: task for task in self._tasks.values() if task.leader}
        for pid in dead:
            if pid in leaders:
                leaders[pid].hear_the_last()
                if not leaders[pid].over:
                    self._bereft.append(leaders[pid])
        if self._bereft:
            self._end_orphans()
        self._leaders.drop(dead)

    def _end_orphans(self) -> None:
        """End what killed leaders left to us, their subreaper; their tasks end after the last."""
        ours = {
            task.leader.pid
            for task in self._tasks.values()
            if task.leader and task.leader.pid is not None
        }
        ours |= self._leaders.pids() | self._isolating.sweepers | self._crews.pids()
        if self._agent.pid is not None:
            ours.add(self._agent.pid)
        orphans = processes.orphans(ours)
        processes.signal_all(orphans, signal.SIGKILL)
        if orphans:
            self._kill_again_at = time.monotonic() + _KILL_AGAIN_SECONDS
            return
        self._kill_again_at = None
        self._crews.bury()
        bereft, self._bereft = self._bereft, []
        for task in bereft:
            task.tree_ended()

    def _adopt_records(self) -> None:
        """Take over what an earlier keeper left: its ends, and its unfinished attempts as lost."""
        for attempt, (intent, end) in self._records.load().items():
            if end is None:
                end = {"lost": "its keeper was killed", "at": time.time_ns(), **_stored(intent)}
                self._record_end(attempt, end)
            whose = {"job": "", "folder": b"", **intent}
            if "crew" in intent:
                self._crews.adopt(attempt, whose, end)
            else:
                self._ended[attempt] = {**whose, "end": end}


def _stored(intent: dict[str, Any]) -> dict[str, int]:
    """Return the lengths of the output that an earlier keeper stored of an attempt."""
    folder = os.fsdecode(intent.get("folder", b""))
    return {name: SegmentReader(folder, name).length() for name in ("stdout", "stderr")}


def _beside(task: dict[str, Any], order: dict[str, Any]) -> dict[str, Any]:
    """Return the spec of a process in a task's surroundings, with a terminal of its own."""
    environment = b"\0".join([task["environment"], *order["set_environment"]])
    # Whatever is ordered, it is as isolated as the task is.
    return {**task, **order, "environment": environment, "isolation": task.get("isolation")}
