"""The services that the API is a face of."""

from __future__ import annotations

from dataclasses import dataclass

from updraft.server.auth.environment_keys import EnvironmentKeys
from updraft.server.services.access import Access
from updraft.server.services.execution import Execution
from updraft.server.services.fleet import Fleet
from updraft.server.services.instance import Instance
from updraft.server.services.jobs import Jobs
from updraft.server.services.operations import Operations
from updraft.store.database import Database


@dataclass(frozen=True, slots=True)
class Parts:
    """What routers take their services from."""

    database: Database
    keys: EnvironmentKeys
    execution: Execution
    jobs: Jobs
    fleet: Fleet
    instance: Instance
    access: Access
    operations: Operations
