"""What the server holds in memory of jobs that have not ended, and of connected runners."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from updraft.model.dependencies import Edge
from updraft.model.job import Outcome, Resources, RetryOn
from updraft.model.pool import Runner
from updraft.model.states import State, Wanted
from updraft.scheduling.capacity import NOTHING, Capacity, Node
from updraft.scheduling.queue import Party, Waiting
from updraft.server.relay.relay import Link
from updraft.server.services.live_array import LiveArray, LiveCrew
from updraft.wire import frames


class Client(Protocol):
    """A client that is attached to a job."""

    @property
    def remote(self) -> bool:
        """Whether a network lies between, which may break when the client does not."""

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


class ControlLink(Link, Protocol):
    """A runner's control connection."""

    def close(self) -> None:
        """End the connection after what was sent."""

    def abort(self) -> None:
        """End the connection at once."""


@dataclass(slots=True, eq=False)
class LiveAttempt:
    """The one recognised attempt of a live job."""

    serial: int
    number: int
    runner: str
    holds: Resources
    """What it took of its runner, however its job's need changes meanwhile; a borrower: nothing."""
    gpus: tuple[str, ...]
    granted_ns: int
    started_ns: int | None = None
    pid: int | None = None
    keeper: str = ""
    """Whom the grant was sent to; empty: nobody, or by an earlier server."""
    stored: bool = False
    """Whether the grant is in the database; before that no runner hears of it."""
    start_stored: bool = False
    stopped: bool = False
    spawned: bool = False
    """Whether the runner that is connected was told to start it."""
    signals: list[int] = field(default_factory=list)
    """What came before it could be delivered."""
    lender: Lender | None = None
    """In whose share it runs (``families``); its GPUs are that one's too."""
    borrows: Resources = NOTHING
    """What it has of that share."""
    unpaid_cpus_milli: int = 0
    """What it does not count, as the stage of a pipeline whose CPUs another one counts."""

    @property
    def has(self) -> Resources:
        """What it may use, and lend: its own, borrowed, or counted elsewhere."""
        paid = self.holds if self.lender is None else self.borrows
        return replace(paid, cpus_milli=paid.cpus_milli + self.unpaid_cpus_milli)

    @property
    def own_gpus(self) -> tuple[str, ...]:
        """The GPUs that are its runner's again when it is over."""
        return self.gpus if self.lender is None else ()

    def within(self, at_ns: int) -> int:
        """Return when something happened to it by its runner's clock, within what ours says."""
        return min(max(at_ns, self.granted_ns), time.time_ns())


Lender = LiveAttempt | LiveCrew
"""What holds part of a runner, in which others may run."""


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
    beside: bool = False
    """Whether another stage of its pipeline had its grant before."""
    unpaid_cpus_milli: int = 0
    """What it then does not count, and runs on all the same."""
    parent: str | None = None
    """The job of the task that submitted it."""
    lineage: tuple[str, ...] = ()
    """That one and those that it came from itself, the first one first."""
    came_from: int = 0
    """The attempt, or crew, that submitted it; 0: not known any more."""
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
    array: LiveArray | None = None
    """Its tasks, if it is an array; ``attempt`` is then never one."""
    start_stored: bool = False
    """Of an array: whether its first start is stored."""
    retry_on: frozenset[RetryOn] = frozenset({RetryOn.LOST})
    backoff_ms: int = 0
    not_before_ns: int | None = None
    deadline_ns: int | None = None
    after: tuple[Edge, ...] = ()
    """What it was to wait for."""
    waits_for: dict[Edge, None] = field(default_factory=dict)
    """What of that has not come yet, in its order; pairs of tasks are its array's."""
    timer: asyncio.TimerHandle | None = None
    """Of ``not_before_ns`` and ``deadline_ns``."""
    expired: bool = False
    """Whether its deadline is over, which ends it."""

    @property
    def waiting(self) -> bool:
        """Whether it waits for a grant, and none of its tasks has one."""
        if self.array is not None and self.array.tasks:
            return False
        return self.attempt is None and not self.ending

    @property
    def party(self) -> Party:
        """Whose it is."""
        return Party(self.project, self.owner)

    @property
    def place(self) -> Waiting:
        """Its place in its pool's queue."""
        return Waiting(self.serial, self.priority, self.need, self.party, self.beside)


@dataclass(slots=True)
class Upgrade:
    """How a runner's agent takes another release from this server."""

    hindrance: str
    """Why it cannot; empty: it can."""
    running: bool = False
    problem: str = ""
    """Why the last one failed."""


@dataclass(slots=True, eq=False)
class LiveRunner:
    """A runner that may have tasks.  ``free`` is kept even while it is away: its tasks go on."""

    known: Runner
    total: Capacity
    free: Capacity
    seen: float
    """When it was last heard of (monotonic seconds)."""
    control: ControlLink | None = None
    data: Link | None = None
    keeper: str = ""
    keeper_pid: int = 0
    agent_pid: int = 0
    release: str = ""
    keeper_release: str = ""
    reported: dict[str, Any] = field(default_factory=dict)
    """What it said that it has, of which its pool's shape may leave out some."""
    upgrade: Upgrade | None = None
    """How it takes another release; None: it is too old to know how."""
    lost: bool = False
    """Whether its lease ran out: what it had was given up, whatever it does."""

    @property
    def name(self) -> str:
        """Its name, which no other runner has."""
        return self.known.name

    @property
    def pool(self) -> str:
        """The pool that it is part of."""
        return self.known.pool

    @property
    def devices(self) -> list[dict[str, Any]]:
        """The GPUs that it offers."""
        return [each for each in self.reported.get("gpus", ()) if each["uuid"] in self.total.gpus]

    @property
    def ships(self) -> bool:
        """Whether it sends output to be stored, since it shares no files with the server."""
        return self.known.remote

    def kill(self, serial: int, why: str, grace_ms: int) -> None:
        """Let it end an attempt: SIGTERM, the grace, SIGKILL."""
        if self.control is not None:
            body = {"why": why, "grace_ms": grace_ms}
            self.control.send_message(frames.KILL, body, serial << 2)

    @property
    def is_there(self) -> bool:
        """Whether it can be told to start something."""
        return not self.lost and self.control is not None and self.data is not None

    @property
    def node(self) -> Node | None:
        """What it offers to new tasks; None while it takes none."""
        if not self.is_there or self.known.draining:
            return None
        return Node(self.name, self.free, self.known.serves)
