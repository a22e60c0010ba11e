"""An agent's two connections, as the server sees them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from updraft import errors
from updraft.model.pool import Runner
from updraft.scheduling.capacity import shaped
from updraft.server.services.beside import BesideRuns
from updraft.server.services.execution import Execution
from updraft.server.services.live import LiveRunner, Upgrade
from updraft.wire import frames, reports
from updraft.wire.transport import FrameConnection, body_of

_CONTROL = frozenset({frames.STOPPED, frames.CONTINUED})
_OF_CREWS = frozenset({frames.STARTS, frames.ENDS})
_REPORTS = _CONTROL | {frames.STARTED, frames.EXITED}
_STREAMS = frozenset(
    {frames.DATA, frames.ACK, frames.CLOSE, frames.EOF, frames.ATTACH, frames.SHIP}
)


_MAX_SAID = 500


@dataclass(frozen=True, slots=True)
class Lease:
    """How long a runner may be silent."""

    seconds: float
    """Before its fenced tasks end themselves, and it gets no new ones."""
    fence_grace_seconds: float
    """That those have for their end, before the server gives them to others."""


class AgentSessions:
    """Joins the control and the data connection of one agent."""

    def __init__(
        self,
        execution: Execution,
        beside: BesideRuns,
        lease: Lease,
        is_sure: Callable[[], bool] = lambda: True,
    ) -> None:
        """``is_sure``: whether no other server can have taken over, so that leases are ours."""
        self.execution = execution
        self.beside = beside
        self.lease = lease
        self.is_sure = is_sure
        self.waiting: dict[str, AgentControl] = {}

    def control(self, runner: Runner) -> AgentControl:
        """Return the session of an agent's first connection."""
        return AgentControl(self, runner)

    def data(self, runner: Runner) -> AgentData:
        """Return the session of an agent's second connection."""
        return AgentData(self, runner)


class AgentControl:
    """Reports come in, grants and orders go out."""

    def __init__(self, sessions: AgentSessions, known: Runner) -> None:
        self._sessions = sessions
        self._execution = sessions.execution
        self._connection: FrameConnection | None = None
        self.token = secrets.token_hex(16)
        self.known = known
        self.runner: LiveRunner | None = None
        self.data: FrameConnection | None = None
        self._report: dict[str, Any] | None = None

    def start(self, connection: FrameConnection, body: dict[str, Any]) -> None:
        self._connection = connection
        self._sessions.waiting[self.token] = self
        lease = self._sessions.lease
        connection.send_message(
            frames.WELCOME,
            {
                "session": self.token,
                "ships": self.known.remote,
                "lease_ms": round(lease.seconds * 1000) if self.known.remote else 0,
                "fence_grace_ms": round(lease.fence_grace_seconds * 1000),
            },
        )

    def join(self, data: FrameConnection) -> None:
        """The data connection is there."""
        if self._connection is None:
            raise errors.Conflict("the control connection is gone; connect again")
        self.data = data
        data.send_message(frames.WELCOME, {})
        self._take_part()

    def _take_part(self) -> None:
        """With both connections and the report there, the runner takes part."""
        report, control, data = self._report, self._connection, self.data
        if report is None or control is None or data is None or self.runner is not None:
            return
        if self.known.remote:
            # As it is now: it may have been drained, or removed, since it was let in.
            now = self._execution.live.runners.get(self.known.name)
            if now is None or now.known.credential != self.known.credential:
                control.fail(errors.NotSignedIn.code, "this runner was removed")
                return
            self.known = now.known
        capacity = report["capacity"]
        pool = self._execution.live.pools.get(self.known.pool)
        total = shaped(capacity, None if pool is None else pool.shape)
        self.runner = LiveRunner(
            known=self.known,
            total=total,
            free=total,
            seen=time.monotonic(),
            control=control,
            data=data,
            keeper=report["keeper"],
            keeper_pid=report["keeper_pid"],
            agent_pid=report["pid"],
            release=report["release"],
            keeper_release=report["keeper_release"],
            reported=capacity,
            upgrade=_upgrade(report.get("upgrade")),
        )
        rest = self._sessions.beside.runner_joined(self.runner, report["attempts"])
        self._execution.runners.joined(self.runner, rest)
        self._report = None

    def frame(self, kind: int, channel: int, offset: int, payload: bytes | memoryview) -> None:
        serial = channel >> 2
        if kind == frames.PING:
            if self._connection is not None:
                # A PONG renews leases; a PING only says that somebody is here.
                answer = frames.PONG if self._sessions.is_sure() else frames.PING
                self._connection.send_stream(answer, 0, offset)
        elif kind == frames.REPORT:
            self._report = reports.report_of(body_of(payload))
            self._take_part()
        if self.runner is None:
            return
        self.heard()
        if kind in _STREAMS:
            self.stream(kind, channel, offset, payload)
            return
        if kind == frames.UPGRADE:
            self.runner.upgrade = _upgrade({"hindrance": "", **body_of(payload)})
            return
        if kind in _OF_CREWS:
            self._of_crew(kind, serial, body_of(payload))
            return
        # What a runner says of what it does not have is not taken.
        if self._sessions.beside.is_on(serial, self.runner):
            if kind in _REPORTS:
                self._sessions.beside.handle(serial, kind, _report(kind, payload))
            return
        if not self._execution.runners.is_on(serial, self.runner):
            return
        if kind == frames.STARTED:
            self._execution.reports.started(serial, _report(kind, payload))
        elif kind == frames.EXITED:
            self._execution.reports.exited(serial, _report(kind, payload))
        elif kind == frames.GREW:
            self._execution.reports.grew(serial)
        elif kind in _CONTROL:
            self._execution.reports.said(serial, kind, _report(kind, payload))

    def _of_crew(self, kind: int, crew: int, body: dict[str, Any]) -> None:
        arrays, runner = self._execution.arrays, self.runner
        if runner is None or self._execution.live.runners.get(runner.name) is not runner:
            return
        if kind == frames.STARTS:
            arrays.started(crew, runner, reports.starts_of(body))
        else:
            arrays.ended(crew, runner, reports.ends_of(body))

    def stream(self, kind: int, channel: int, offset: int, payload: bytes | memoryview) -> None:
        """A stream frame arrived, on either connection."""
        serial, stream = channel >> 2, channel & 3
        intake, relay = self._execution.intake, self._execution.relay
        if self.data is None or not relay.comes_from(serial, self.data):
            return
        if not intake.holds(serial):
            relay.from_runner(kind, channel, offset, payload)
        elif kind == frames.DATA and stream:
            intake.data(serial, stream, offset, payload)
        elif kind == frames.EOF and stream:
            intake.ended(serial, stream, offset)
        elif kind == frames.SHIP:
            intake.answered(serial)
        else:
            relay.from_runner(kind, channel, offset, payload)

    def heard(self) -> None:
        """The runner is there."""
        if self.runner is not None:
            self.runner.seen = time.monotonic()

    def closed(self) -> None:
        self._connection = None
        self._sessions.waiting.pop(self.token, None)
        if self.runner is not None:
            self._execution.runners.left(self.runner)
        if self.data is not None:
            self.data.abort()

    def end(self) -> None:
        """End the agent's connections; it dials again."""
        if self._connection is not None:
            self._connection.abort()

    def writable(self, ready: bool) -> None:
        """Grants are bounded by what the runner has room for."""


def _report(kind: int, payload: bytes | memoryview) -> dict[str, Any]:
    """Return what is said of an attempt.  Raises ``PackingError``."""
    body = body_of(payload)
    if kind == frames.STARTED:
        return reports.started_of(body)
    if kind == frames.EXITED:
        return reports.end_of(body)
    return reports.said_of(body)


def _upgrade(said: dict[str, Any] | None) -> Upgrade | None:
    """Return what a runner says of its upgrade, in one line each, whatever it says."""
    if said is None:
        return None
    hindrance, problem = (str(said.get(key, ""))[:_MAX_SAID] for key in ("hindrance", "problem"))
    return Upgrade(_line(hindrance), bool(said.get("running")), _line(problem))


def _line(text: str) -> str:
    return "".join(sign if sign.isprintable() else " " for sign in text)


class AgentData:
    """Output comes in, input goes out."""

    def __init__(self, sessions: AgentSessions, known: Runner) -> None:
        self._sessions = sessions
        self._known = known
        self._control: AgentControl | None = None

    def start(self, connection: FrameConnection, body: dict[str, Any]) -> None:
        session = body.get("session")
        control = self._sessions.waiting.get(session) if type(session) is str else None
        if control is None or control.known.name != self._known.name:
            raise errors.NotAllowed("there is no such agent session; connect again")
        del self._sessions.waiting[control.token]
        self._control = control
        control.join(connection)

    def frame(self, kind: int, channel: int, offset: int, payload: bytes | memoryview) -> None:
        control = self._control
        if control is None or control.runner is None:
            return
        control.heard()
        control.stream(kind, channel, offset, payload)

    def closed(self) -> None:
        if self._control is not None:
            self._control.end()

    def writable(self, ready: bool) -> None:
        """Input under way is bounded by the clients' windows."""
