"""Jobs as values: what was asked for."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from updraft.model.dependencies import Edge
from updraft.model.pool import LOCAL_POOL
from updraft.model.states import State

_ID_LETTERS = "abcdefghjkmnpqrstvwxyz"  # Crockford's alphabet: none looks like another
_ID_SIGNS = "0123456789" + _ID_LETTERS
ID_LENGTH = 10


def new_job_id() -> str:
    """Return a random id: short enough to type, and telling nothing of other people's jobs.

    About 50 bits; the store refuses a repetition.  The first sign is a letter, so that an id is
    never mistaken for a number.
    """
    return secrets.choice(_ID_LETTERS) + "".join(
        secrets.choice(_ID_SIGNS) for _ in range(ID_LENGTH - 1)
    )


@dataclass(frozen=True, slots=True)
class Resources:
    """What a task needs while it runs.  CPUs in thousandths."""

    cpus_milli: int = 1000
    memory_bytes: int = 0
    gpus: int = 0


@dataclass(frozen=True, slots=True)
class Terminal:
    """The terminal that a task gets."""

    rows: int
    columns: int
    attributes: list[Any] | None
    stderr: bool
    """Whether stderr goes to the terminal too, or to a pipe beside it."""


def name_of(argv: Sequence[bytes]) -> str:
    """Return how a command is called in messages, which are text."""
    return argv[0].decode("utf-8", "backslashreplace")


@dataclass(frozen=True, slots=True)
class Command:
    """What runs, and in which surroundings.  Bytes, as the system has them."""

    argv: list[bytes]
    directory: bytes
    umask: int
    nice: int
    rlimits: list[list[int]]
    ignored_signals: list[int]
    set_environment: list[bytes]
    """``KEY=VALUE`` of ``-e``; unlike the forwarded environment they are kept for a rerun."""
    stdin: bool
    terminal: Terminal | None
    closed_fds: list[int] = field(default_factory=list)
    """Which of stdin, stdout and stderr the command finds closed."""
    one_output: bool = False
    """Whether stdout and stderr are one stream (``2>&1``), so that their order is kept."""
    fallback_directory: bool = False
    """Whether a directory that is not there may be replaced by an empty workspace."""
    fenced: bool = False
    """Whether it ends by itself when its runner is out of touch with the server for too long."""


class Kind(StrEnum):
    """How a job's tasks belong together."""

    SINGLE = "single"
    """There is one."""
    ARRAY = "array"
    """They are independent of each other."""
    GANG = "gang"
    """They start together or not at all, and end together."""


MOST_TASKS = 10_000_000
"""Of one job."""


@dataclass(frozen=True, slots=True)
class Tasks:
    """How many tasks a job has, and how they belong together."""

    kind: Kind = Kind.SINGLE
    count: int = 1
    max_parallel: int | None = None
    """How many of an array's run at a time; None: as many as there is room for."""
    indices: str | None = None
    """Which of ``count`` tasks are to run, as ``model.ranges`` writes them; None: all."""


ONE_TASK = Tasks()


class RetryOn(StrEnum):
    """After what a task is tried again, if it has retries left."""

    LOST = "lost"
    """Its machine or keeper was lost."""
    EXIT = "exit"
    """Its command ended with another exit code than 0, or by a signal."""
    OOM = "oom"
    """It ran out of memory."""
    EXPIRED = "expired"
    """It reached its time limit."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How a job is to be treated.  Durations in milliseconds; None: without limit."""

    time_limit_ms: int | None = None
    retries: int = 0
    retry_on: frozenset[RetryOn] = frozenset({RetryOn.LOST})
    backoff_ms: int = 0
    """How long the first retry waits; each further one waits twice as long as that before."""
    priority: int = 0
    keep_alive_ms: int = 0
    grace_ms: int = 10_000
    not_before_ns: int | None = None
    """It does not start before then (UNIX time)."""
    deadline_ns: int | None = None
    """It is ended then, whether it has started or not."""


MOST_BACKOFF_MS = 3_600_000


def backoff_of(policy_ms: int, attempt: int) -> int:
    """Return how long a task waits before its next attempt, after this one, in milliseconds."""
    return min(policy_ms << min(attempt - 1, 32), MOST_BACKOFF_MS)


@dataclass(frozen=True, slots=True)
class Submission:
    """A job as its owner submits it, already checked."""

    key: bytes
    """Made by the client: the same key twice is one job."""
    command: Command
    attached: bool
    """Whether a client stays with the job (urun), or it runs detached (ubatch)."""
    resources: Resources = field(default_factory=Resources)
    policy: Policy = field(default_factory=Policy)
    name: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    pool: str = LOCAL_POOL
    pipes: tuple[str, str] = ("", "")
    """The identities of the pipes that the client's stdin and stdout are; empty: no pipe."""
    source: str | None = None
    """The job that this one runs again."""
    tasks: Tasks = ONE_TASK
    parent: str | None = None
    """The job of the task that submitted it."""
    after: tuple[Edge, ...] = ()
    """What it waits for."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended."""

    state: State
    exit_code: int | None
    message: str
    signal: int | None = None
    """What ended the command, if a signal did; known only as it ends."""

    @property
    def ok(self) -> bool:
        """Whether what was asked for was done."""
        return self.state is State.SUCCESS and self.exit_code == 0
