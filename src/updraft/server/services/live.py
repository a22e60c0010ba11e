"""What the server holds in memory of jobs that have not ended, and of connected runners."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, Protocol

from updraft.model.job import Outcome, Resources
from updraft.model.states import State, Wanted
from updraft.scheduling.queue import Capacity
from updraft.server.relay.relay import Link


class Client(Protocol):
    """A client that is attached to a job."""

    def accepted(self, job: LiveJob) -> None:
        """The submission is durable."""

    def attempt_granted(self, job: LiveJob, attempt: LiveAttempt) -> None:
        """Streams of a new attempt begin."""

    def job_ended(self, job: LiveJob, outcome: Outcome, lengths: tuple[int, int]) -> None:
        """The terminal state is stored; the last attempt's streams have these lengths."""

    def say(self, message: str) -> None:
        """A line for the person."""

    def forward(self, kind: int, body: dict[str, Any]) -> None:
        """Pass on a control frame about the attempt (stopped, continued)."""

    def replaced(self) -> None:
        """Another client took the job over."""


@dataclass(slots=True, eq=False)
class LiveAttempt:
    """The one recognised attempt of a live job."""

    serial: int
    number: int
    runner: str
    gpus: tuple[str, ...]
    granted_ns: int
    started_ns: int | None = None
    pid: int | None = None
    stored: bool = False
    """Whether the grant is in the database; before that no runner hears of it."""
    start_stored: bool = False
    stopped: bool = False
    spawned: bool = False
    """Whether the runner that is connected was told to start it."""
    signals: list[int] = field(default_factory=list)
    """What came before it could be delivered."""


@dataclass(slots=True, eq=False)
class LiveJob:
    """A job that has not ended."""

    serial: int
    id: str
    owner: str
    project: str
    pool: str
    name: str
    need: Resources
    priority: int
    retries: int
    time_limit_ms: int | None
    keep_alive_ms: int
    grace_ms: int
    attached: bool
    created_ns: int
    command_name: str
    terminal: bool = False
    pipes: tuple[str, str] = ("", "")
    """The pipes that its client reads and writes (``urun a | urun b``)."""
    state: State = State.IN_QUEUE
    wanted: Wanted = Wanted.RUN
    detached: bool = False
    started_ns: int | None = None
    attempts: int = 0
    attempt: LiveAttempt | None = None
    key_slot: int | None = None
    client: Client | None = None
    client_gone: asyncio.TimerHandle | None = None
    hung_up: bool = False
    """Whether its command was told that nobody is there any more."""
    output_waits: bool = False
    """Whether what it writes waits for a client that is about to come back to a new server."""
    ending: bool = False

    @property
    def waiting(self) -> bool:
        """Whether it waits for a grant."""
        return self.attempt is None and not self.ending


@dataclass(slots=True, eq=False)
class LiveRunner:
    """A connected runner.  ``free`` is kept even while it is away: its tasks go on."""

    name: str
    pool: str
    total: Capacity
    free: Capacity
    control: Link | None = None
    data: Link | None = None
    keeper: str = ""
    keeper_pid: int = 0
    agent_pid: int = 0
    release: str = ""
    keeper_release: str = ""
    devices: list[dict[str, Any]] = field(default_factory=list)
