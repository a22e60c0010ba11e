"""Builds the server's parts out of its configuration, each from those below it."""

from __future__ import annotations

import asyncio

from updraft import settings
from updraft.configuration import Configuration, reading
from updraft.configuration.schema import Limit
from updraft.model.limits import DefaultLimits, Limits
from updraft.server.api.agent_session import AgentSessions, Lease
from updraft.server.api.client_session import ClientSession
from updraft.server.api.door import Doors, Room
from updraft.server.api.exec_session import ExecSession
from updraft.server.api.http import HttpApi
from updraft.server.api.parts import Parts
from updraft.server.auth.environment_keys import EnvironmentKeys, Predecessors
from updraft.server.observe.traces import traces_to
from updraft.server.relay.relay import Relay
from updraft.server.services.access import Access
from updraft.server.services.beside import BesideRuns
from updraft.server.services.execution import Execution
from updraft.server.services.fleet import Fleet
from updraft.server.services.gate import Gate
from updraft.server.services.instance import Instance
from updraft.server.services.jobs import Jobs
from updraft.server.services.oidc import OidcSettings
from updraft.server.services.operations import Operations
from updraft.server.services.pools import configured_pools
from updraft.server.services.sign_in import SessionLimits
from updraft.server.services.strangers import Strangers
from updraft.server.services.task_access import TaskAccess
from updraft.store import jobs as queries
from updraft.store import schema
from updraft.store.database import Database, sqlite_url
from updraft.store.leadership import Leadership

_FENCE = 2 / 3
"""The part of the time between suspect and lost that fenced tasks have for their end."""


async def build(
    folders: settings.Folders, configuration: Configuration, leadership: Leadership | None
) -> Parts:
    """Return the parts, with all that earlier servers left loaded.

    ``leadership``: of a shared database, which is then the one that is used.
    """
    # Files first: a mistake in their names is told before anything is open.
    telemetry = configuration.telemetry
    metrics_token, oidc = reading.secret(telemetry.metrics_token_file), _oidc(configuration)
    if leadership is None:
        database = Database(sqlite_url(folders.database))
        await asyncio.to_thread(schema.upgrade, database.engine)
    else:
        database = Database(configuration.server.database, leadership)
        await asyncio.to_thread(schema.upgrade, database.engine)
        await asyncio.to_thread(leadership.begin)
    before = None if leadership is None else Predecessors(folders.keys, leadership.epoch)
    used = await database.read(queries.used_key_slots)
    keys = EnvironmentKeys(folders.keys, used, before)
    execution = Execution(
        database,
        keys,
        Relay(),
        folders.logs,
        quota_bytes=configuration.server.output_quota,
        default_pool=configuration.server.default_pool,
    )
    await execution.load()
    fleet = Fleet(database, execution, configured_pools(configuration))
    await fleet.load()
    access = Access(database, session_limits(configuration), oidc, _limits(configuration))
    await access.load()
    execution.live.holdings.limits_of = access.limits_of
    access.when_changed = execution.schedule
    access.strangers = Strangers(configuration.server.requests_per_second)
    access.admission.stored = execution.live.stored
    access.admit_tasks(TaskAccess(database, keys, execution.live), execution.live)
    execution.serve_tasks_at(folders.socket)
    instance = Instance(folders, execution, configuration.server)
    traces = traces_to(telemetry.otlp_endpoint, telemetry.sample)
    operations = Operations(execution, database, instance, traces=traces)
    execution.reports.launched = operations.measures.launched
    execution.relay.passed = operations.measures.relay
    if metrics_token:
        operations.open_metrics(metrics_token)
    jobs = Jobs(database, execution)
    return Parts(database, keys, execution, jobs, fleet, instance, access, operations)


def make_doors(parts: Parts, http: HttpApi, configuration: Configuration) -> Doors:
    """Return what is behind the server's sockets."""
    beside = BesideRuns(parts.execution)
    parts.execution.runners.when_lost = beside.runner_lost
    configured = configuration.server
    gap = configured.lost_after - configured.suspect_after
    lease = Lease(configured.suspect_after, gap * _FENCE)
    leadership = parts.database.leadership
    sure = {} if leadership is None else {"is_sure": leadership.is_sure}
    agents = AgentSessions(parts.execution, beside, lease, **sure)
    doors = Doors(
        {
            "client": lambda who: ClientSession(parts.execution, parts.jobs, parts.access, who),
            "exec": lambda who: ExecSession(beside, parts.jobs, parts.access, who),
        },
        {"agent": agents.control, "agent-data": agents.data},
        http=http.protocol,
        gate=Gate(parts.access, parts.fleet),
        room=Room(configuration.server.max_connections, configuration.server.connections_per_peer),
    )
    parts.operations.connections = lambda: {
        "client": len(doors.clients),
        "http": http.connections,
        "new": len(doors.open),
    }
    return doors


async def take_down(parts: Parts) -> None:
    """Close the parts, in the order in which they need each other."""
    parts.execution.close()
    await parts.execution.settle()
    await parts.access.close()
    await asyncio.to_thread(parts.operations.traces.close)
    await parts.database.close()
    parts.keys.close()
    if parts.database.leadership is not None:
        await asyncio.to_thread(parts.database.leadership.release)


def session_limits(configuration: Configuration) -> SessionLimits:
    """Return how users sign in, and for how long."""
    configured = configuration.sign_in
    return SessionLimits(
        idle_seconds=configured.session,
        absolute_seconds=configured.session_max,
        passwords=configured.passwords,
    )


def _limits(configuration: Configuration) -> DefaultLimits:
    def of(found: Limit) -> Limits:
        return Limits(
            running_jobs=found.running_jobs,
            cpus_milli=found.cpus,
            gpus=found.gpus,
            memory_bytes=found.memory,
            stored_bytes=found.stored_bytes,
        )

    return DefaultLimits(of(configuration.limits.project), of(configuration.limits.user))


def _oidc(configuration: Configuration) -> OidcSettings | None:
    """Return how to use the identity provider, if one is configured."""
    configured = configuration.sign_in.oidc
    if not configured.issuer:
        return None
    return OidcSettings(
        issuer=configured.issuer,
        client_id=configured.client_id,
        client_secret=reading.secret(configured.client_secret_file),
        server_url=configuration.server.url,
        domains=configured.allowed_domains,
        groups=configured.allowed_groups,
        project=configured.project or None,
        name=configured.label,
        scopes=configured.scopes,
        groups_claim=configured.groups_claim,
        name_claim=configured.name_claim,
        ca_file=configured.ca_file,
    )
