"""An agent's two connections, as the server sees them."""

from __future__ import annotations

import secrets
from typing import Any

from updraft import errors
from updraft.model.access import Principal
from updraft.model.job import LOCAL_POOL
from updraft.scheduling.queue import Capacity
from updraft.server.services.beside import BesideRuns
from updraft.server.services.execution import Execution
from updraft.server.services.live import LiveRunner
from updraft.wire import frames
from updraft.wire.transport import FrameConnection, body_of

_CONTROL = frozenset({frames.STOPPED, frames.CONTINUED})
_REPORTS = _CONTROL | {frames.STARTED, frames.EXITED}
_STREAMS = frozenset({frames.DATA, frames.ACK, frames.CLOSE})


class AgentSessions:
    """Joins the control and the data connection of one agent."""

    def __init__(self, execution: Execution, beside: BesideRuns) -> None:
        self.execution = execution
        self.beside = beside
        self.waiting: dict[str, AgentControl] = {}

    def control(self, principal: Principal) -> AgentControl:
        """Return the session of an agent's first connection."""
        return AgentControl(self)

    def data(self, principal: Principal) -> AgentData:
        """Return the session of an agent's second connection."""
        return AgentData(self)


class AgentControl:
    """Reports come in, grants and orders go out."""

    def __init__(self, sessions: AgentSessions) -> None:
        self._sessions = sessions
        self._execution = sessions.execution
        self._connection: FrameConnection | None = None
        self._token = secrets.token_hex(16)
        self.runner: LiveRunner | None = None
        self.reports: list[dict[str, Any]] = []
        self.data: FrameConnection | None = None

    def start(self, connection: FrameConnection, body: dict[str, Any]) -> None:
        capacity = body["capacity"]
        total = Capacity(
            capacity["cpus_milli"],
            capacity["memory_bytes"],
            frozenset(str(device["uuid"]) for device in capacity["gpus"]),
        )
        self.runner = LiveRunner(
            name=body["runner"],
            pool=LOCAL_POOL,
            total=total,
            free=total,
            control=connection,
            keeper=body["keeper"],
            keeper_pid=body["keeper_pid"],
            agent_pid=body["pid"],
            release=body["release"],
            keeper_release=body["keeper_release"],
            devices=capacity["gpus"],
        )
        self.reports = body["attempts"]
        self._connection = connection
        self._sessions.waiting[self._token] = self
        connection.send_message(frames.WELCOME, {"session": self._token})

    def join(self, data: FrameConnection) -> None:
        """The data connection is there: the runner takes part from now on."""
        if self.runner is None or self._connection is None:
            raise errors.Conflict("the control connection is gone; connect again")
        self.data = data
        self.runner.data = data
        data.send_message(frames.WELCOME, {})
        reports = self._sessions.beside.runner_joined(self.runner, self.reports)
        self._execution.runner_joined(self.runner, reports)
        self.reports = []

    def frame(self, kind: int, channel: int, offset: int, payload: bytes | memoryview) -> None:
        serial = channel >> 2
        if kind in _REPORTS and self._sessions.beside.handle(serial, kind, body_of(payload)):
            return
        if kind == frames.STARTED:
            self._execution.attempt_started(serial, body_of(payload))
        elif kind == frames.EXITED:
            self._execution.attempt_exited(serial, body_of(payload))
        elif kind == frames.GREW:
            self._execution.output_grew(serial)
        elif kind in _CONTROL:
            self._execution.attempt_said(serial, kind, body_of(payload))
        elif kind in _STREAMS:
            self._execution.relay.from_runner(kind, channel, offset, payload)

    def closed(self) -> None:
        self._connection = None
        self._sessions.waiting.pop(self._token, None)
        if self.runner is not None:
            self._execution.runner_left(self.runner)
        if self.data is not None:
            self.data.close()

    def end(self) -> None:
        """Close the agent's connections; it dials again."""
        if self._connection is not None:
            self._connection.close()

    def writable(self, ready: bool) -> None:
        """Grants are bounded by what the runner has room for."""


class AgentData:
    """Output comes in, input goes out."""

    def __init__(self, sessions: AgentSessions) -> None:
        self._sessions = sessions
        self._relay = sessions.execution.relay
        self._control: AgentControl | None = None

    def start(self, connection: FrameConnection, body: dict[str, Any]) -> None:
        control = self._sessions.waiting.pop(body["session"], None)
        if control is None:
            raise errors.NotAllowed("there is no such agent session; connect again")
        self._control = control
        control.join(connection)

    def frame(self, kind: int, channel: int, offset: int, payload: bytes | memoryview) -> None:
        self._relay.from_runner(kind, channel, offset, payload)

    def closed(self) -> None:
        if self._control is not None:
            self._control.end()

    def writable(self, ready: bool) -> None:
        """Input under way is bounded by the clients' windows."""
