"""One running attempt: its leader, its streams, its limits, and how it ends."""

from __future__ import annotations

import os
import selectors
import signal
import time

from updraft.runner.keeper.input import Input
from updraft.runner.keeper.output import Output
from updraft.runner.keeper.stdio import Stdio, set_size
from updraft.storage.segments import SegmentWriter
from updraft.storage.times import TimesWriter
from updraft.wire import frames

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    from updraft.runner.keeper.cgroups import Slot
    from updraft.runner.keeper.leaders import Leader

    class Events(Protocol):
        """What a task tells its keeper."""

        def grew(self, channel: int, length: int) -> None: ...
        def took(self, channel: int, offset: int) -> None: ...
        def input_closed(self, channel: int) -> None: ...
        def said(self, kind: int, task: Task, body: dict[str, Any]) -> None: ...
        def ended(self, task: Task) -> None: ...


_LEADER_SECONDS = 10.0
"""How much longer than the grace a leader may take to end its tree, before that is done for it."""


class Task:
    """An attempt from its SPAWN to its end; calls back into the keeper through ``Events``."""

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
        self.leader: Leader | None = None
        self.slot: Slot | None = None
        self._exit: dict[str, Any] | None = None
        self._selector = selector
        self._events = events
        self._tty = spec["tty"] is not None
        self._isolation: dict[str, Any] | None = spec.get("isolation")
        folder = os.fsdecode(spec["folder"])
        if "crew" not in spec:  # whose silent tasks are many: theirs is made for the first byte
            os.makedirs(folder, mode=0o700, exist_ok=True)
        self._outputs = {
            stream: Output(
                self,
                stream,
                SegmentWriter(folder, name, spec["quota_bytes"]),
                spec["limits"][stream - 1],
            )
            for stream, name in ((frames.STDOUT, "stdout"), (frames.STDERR, "stderr"))
        }
        self._times = TimesWriter(folder)
        self._input = Input(attempt, selector, events, tty=self._tty)

    # -- start

    def start(self, leader: Leader) -> None:
        """Hand the task to its leader.  Raises ``OSError`` when there are no more descriptors."""
        self.leader = leader
        stdio = Stdio(self.spec)
        try:
            self._input.open(stdio.take(frames.STDIN))
            for stream, output in self._outputs.items():
                output.open(stdio.take(stream))
            if self._isolation is not None:
                stdio.give_away(self._isolation)
            groups = [] if self.slot is None else self.slot.entries
            fds = [*stdio.theirs, *groups]
            leader.give(self._order(len(fds)), fds)
        finally:
            stdio.close()
        self._selector.register(leader.socket.fileno(), selectors.EVENT_READ, self._hear)
        for output in self._outputs.values():
            output.resume()

    def _order(self, fds: int) -> dict[str, Any]:
        """Return what its leader has to know, which gets so many descriptors with it."""
        spec = self.spec
        return {
            "fds": fds,
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
            "fallback_directory": bool(spec.get("fallback_directory") and self._isolation),
        }

    def abandon(self) -> None:
        """Close all that was opened for a start that failed."""
        self._hang_up()
        self._input.close()
        for output in self._outputs.values():
            output.close()

    # -- what the agent says

    def receive_input(self, offset: int, data: bytes | memoryview) -> None:
        """Take input that starts at ``offset``; what was taken before is passed over."""
        self._input.receive(offset, data)

    def end_input(self, length: int) -> None:
        """The input ends at ``length``: close it there."""
        self._input.end(length)

    def limit(self, stream: int, offset: int) -> None:
        """The attached reader has room up to ``offset`` of an output stream."""
        output = self._outputs.get(stream)
        if output is not None:
            output.limit = offset
            output.resume()

    def close_output(self, stream: int) -> None:
        """The reader of an output stream is gone: the writer is to see a broken pipe."""
        output = self._outputs.get(stream)
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
        master = self._outputs[frames.STDOUT].fd
        if self._tty and master is not None:
            set_size(master, rows, columns)

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
            "input": self._input.written,
            **self._lengths(),
        }

    def _lengths(self) -> dict[str, int]:
        return {
            "stdout": self._outputs[frames.STDOUT].spool.length,
            "stderr": self._outputs[frames.STDERR].spool.length,
        }

    def tick(self, now: float) -> None:
        """Do what is due: the time limit, giving up, and spooling again after a full disk."""
        if self.deadline is not None and now >= self.deadline:
            self.deadline = None
            self.kill("time", self.grace_seconds)
        if self._give_up_at is not None and now >= self._give_up_at:
            self._give_up_at = None
            self._give_up_leader()
        if self.retry_disk_at is not None and now >= self.retry_disk_at:
            self.retry_disk_at = None
            for output in self._outputs.values():
                output.resume()
            self._finish_if_done()

    def next_tick(self) -> float | None:
        """Return when ``tick`` has something to do (monotonic seconds), None for never."""
        dues = (self.deadline, self.retry_disk_at, self._give_up_at)
        times = [at for at in dues if at is not None]
        return min(times, default=None)

    # -- the leader

    def _tell_leader(self, kind: int, body: dict[str, Any]) -> None:
        if self.leader is not None:
            self.leader.tell(kind, body)

    def _give_up_leader(self) -> None:
        """Kill a leader that does not do what it was told, be it stopped or stuck.

        What it leaves is the keeper's to end.
        """
        if not self.over and self.leader is not None and self.leader.pid is not None:
            self._given_up = True
            self.leader.kill()

    def hear_the_last(self) -> None:
        """Take what the leader said before it ended: its death may be noticed first."""
        leader = self.leader
        if leader is None:
            return
        again = True
        while again and not self.over and leader.is_there:
            # One read of an isolated one's ends where the sender's credentials change.
            again = self._hear_leader() and leader.isolated

    def _hear(self) -> None:
        self._hear_leader()

    def _hear_leader(self) -> bool:
        """Take what the leader said; return whether it said anything."""
        leader = self.leader
        if leader is None:
            return False
        try:
            said = leader.hear()
        except BlockingIOError:
            return False
        if said is None:  # it was killed: once it is reaped, the keeper ends what it left
            self._hang_up()
            if leader.pid is None and not self.over:
                self.tree_ended()  # what it left is the task's beside it, and ends with that
            return False
        for kind, body in said:
            if kind == frames.EXITED:
                self._exit = body
                self._drain()
            else:
                self._keep_up(kind, body)
                self._events.said(kind, self, body)
        return True

    def _keep_up(self, kind: int, body: dict[str, Any]) -> None:
        """Note how the command fares, and add to its leader's word what only we know."""
        if kind == frames.STARTED:
            body["unenforced"] = self.unenforced
            self.pid, self.started_at = body["pid"], body["at"]
            self._began = time.monotonic() - max(0, time.time_ns() - body["at"]) / 1e9
            self.set_limit(self._limit_ms)
        elif kind == frames.STOPPED:
            self.stopped = True
            # What it wrote, and the ^Z that its terminal echoed, is shown before the stop.
            for output in self._outputs.values():
                output.read_what_is_there()
            body.update(self._lengths())
        elif kind == frames.CONTINUED:
            self.stopped = False

    def tree_ended(self) -> None:
        """The leader was killed, and what it left to the keeper has been ended."""
        if self._exit is None:
            how: dict[str, Any] = {"lost": "its leader process was killed"}
            if self._given_up:
                how = {"status": int(signal.SIGKILL)}
            self._exit = {**how, "at": time.time_ns()}
            self._drain()

    def release_leader(self) -> Leader | None:
        """Return the leader if it can lead another task.

        One with a pty leads only one, and so does one that has seen what is its owner's.
        """
        leader = self.leader
        once = self._tty or (leader is not None and leader.isolated)
        # One whose socket is closed was killed since the task's last process ended.
        gone = leader is None or not leader.is_there or self._given_up
        if leader is None or gone or once or self._exit is None or "lost" in self._exit:
            self._hang_up()
            self.leader = None
            return None
        self._selector.unregister(leader.socket.fileno())
        self.leader = None
        return leader

    def _hang_up(self) -> None:
        leader = self.leader
        if leader is None or not leader.is_there:
            return
        if leader.socket.fileno() in self._selector.get_map():
            self._selector.unregister(leader.socket.fileno())
        leader.socket.close()

    # -- the end

    @property
    def over(self) -> bool:
        """Whether no process of the task is left."""
        return self._exit is not None

    def _drain(self) -> None:
        # No writer is left, so each stream reads to its end without waiting.
        for output in self._outputs.values():
            output.resume()
        self._input.close()
        self._finish_if_done()

    def output_closed(self) -> None:
        """An output stream came to its end."""
        self._finish_if_done()

    def _finish_if_done(self) -> None:
        if self._exit is None or self.end is not None:
            return
        if not all(output.closed for output in self._outputs.values()):
            return
        self.deadline = self._give_up_at = None
        self.end = {**self._exit, "why": self.why, **self._lengths()}
        for output in self._outputs.values():
            output.spool.close()
        self._events.ended(self)

    # -- what its outputs need of it

    @property
    def selector(self) -> selectors.BaseSelector:
        """The keeper's selector."""
        return self._selector

    def spooled(self, output: Output) -> None:
        """Bytes of a stream were stored: tell of them, and note the time."""
        self._times.note(time.time_ns(), output.stream, output.told)
        output.told = output.spool.length
        channel = frames.stream_channel(self.attempt, output.stream)
        self._events.grew(channel, output.spool.length)
