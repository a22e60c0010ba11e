"""What all that carries jobs on shares."""

from __future__ import annotations

from dataclasses import dataclass

from updraft.server.auth.environment_keys import EnvironmentKeys
from updraft.server.relay.relay import Relay
from updraft.server.services.background import Background
from updraft.server.services.dependencies import Dependencies
from updraft.server.services.events import Changes
from updraft.server.services.intake import Intake
from updraft.server.services.live_jobs import LiveJobs
from updraft.server.services.task_surroundings import TaskSurroundings
from updraft.server.services.timing import Timing
from updraft.store.database import Database


@dataclass(frozen=True, slots=True)
class Core:
    """The stored and the live state of jobs, and the streams of their tasks."""

    database: Database
    keys: EnvironmentKeys
    background: Background
    live: LiveJobs
    relay: Relay
    intake: Intake
    changes: Changes
    timing: Timing
    dependencies: Dependencies
    surroundings: TaskSurroundings
