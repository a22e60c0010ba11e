"""The states of jobs, tasks and attempts, and the one table of moves."""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """How Updraft and the engine fared with a job or task; the exit code is the command's."""

    IN_QUEUE = "IN_QUEUE"
    RUNNING = "RUNNING"
    SUSPENDED = "SUSPENDED"
    SUCCESS = "SUCCESS"
    FAILURE = "FAILURE"
    EXPIRED = "EXPIRED"
    CANCELLED = "CANCELLED"

    @property
    def terminal(self) -> bool:
        """Whether nothing leaves this state."""
        return self in TERMINAL


TERMINAL = frozenset({State.SUCCESS, State.FAILURE, State.EXPIRED, State.CANCELLED})

MOVES: dict[State, frozenset[State]] = {
    State.IN_QUEUE: TERMINAL | {State.RUNNING},
    State.RUNNING: TERMINAL | {State.SUSPENDED, State.IN_QUEUE},
    State.SUSPENDED: TERMINAL | {State.RUNNING, State.IN_QUEUE},
    State.SUCCESS: frozenset(),
    State.FAILURE: frozenset(),
    State.EXPIRED: frozenset(),
    State.CANCELLED: frozenset(),
}


def may_move(old: State, new: State) -> bool:
    """Whether ``old`` → ``new`` is in the table of moves."""
    return new in MOVES[old]


class Wanted(StrEnum):
    """What the job's owner last asked for; stored before the request is acknowledged."""

    RUN = "run"
    SUSPEND = "suspend"
    CANCEL = "cancel"


class AttemptState(StrEnum):
    """Where one try at running a task stands."""

    GRANTED = "GRANTED"
    RUNNING = "RUNNING"
    STOPPING = "STOPPING"
    ENDED = "ENDED"
    LOST = "LOST"
    RECALLED = "RECALLED"
    """It was taken back before it started; it counts for nothing."""
