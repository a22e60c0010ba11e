"""Pools: named capacity with one shape and one policy, made by administrators or by updraft.toml.

Administrators see all of them; users see those that their project may use, with what is their
project's in them, and of others only how many are ahead.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from decimal import Decimal

from sqlalchemy import Connection, RowMapping
from sqlalchemy.exc import IntegrityError

from updraft import errors
from updraft.configuration import Configuration
from updraft.configuration.kinds import NAME, NAME_RULE
from updraft.model.access import Principal
from updraft.model.pool import LOCAL_JURISDICTION, LOCAL_POOL, Pool, Shape
from updraft.scheduling.capacity import Capacity, shaped
from updraft.server.services.accounts import can_be_name
from updraft.server.services.audit import note
from updraft.server.services.authority import need_server_admin
from updraft.server.services.execution import Execution
from updraft.server.services.projects import no_project
from updraft.store import fleet as queries
from updraft.store.access import find_project
from updraft.store.database import Database


@dataclass(frozen=True, slots=True)
class PoolView:
    """A pool as the one who asks may see it."""

    pool: Pool
    configured: bool
    """Whether it is written in updraft.toml, or is this machine's own."""
    runners: int
    ready: int
    """How many of them take tasks now."""
    total: Capacity
    free: Capacity
    running: int
    """Jobs: all of them for an administrator, else those of the caller's project."""
    queued: int
    ahead: int
    """Of other projects, before the first of the caller's."""
    reason: str | None
    """Why the first of those that are shown waits."""


class Pools:
    """The pools of one server; ``load`` before use."""

    def __init__(
        self, database: Database, execution: Execution, configured: Iterable[Pool]
    ) -> None:
        self._database = database
        self._execution = execution
        self._live = execution.live
        self._configured = {pool.name: pool for pool in configured}

    async def load(self) -> None:
        """Take up what is configured and what is stored; of two of one name, what is configured."""
        rows = await self._database.read(queries.all_pools)
        self._live.pools.update(self._configured)
        for row in rows:
            if row["name"] not in self._configured:
                self._live.pools[row["name"]] = _pool(row)

    # -- looking

    def find(self, name: str) -> Pool:
        """Return a pool.  Raises ``errors.NotFound``."""
        pool = self._live.pools.get(name)
        if pool is None:
            raise _no_pool(name, self._live.pools)
        return pool

    def list(self, who: Principal) -> list[PoolView]:
        """Return the pools that the caller may see, by name."""
        return [self._view(who, pool) for _, pool in sorted(self._seen(who).items())]

    def show(self, who: Principal, name: str) -> PoolView:
        """Return a pool.  Raises ``errors.NotFound``, also for one that is not the caller's."""
        seen = self._seen(who)
        if name not in seen:
            raise _no_pool(name, seen)
        return self._view(who, seen[name])

    def _seen(self, who: Principal) -> dict[str, Pool]:
        if who.may_administer():
            return dict(self._live.pools)
        return {
            name: replace(pool, projects=pool.projects & {who.project})
            for name, pool in self._live.pools.items()
            if pool.takes(who.project)
        }

    def _view(self, who: Principal, pool: Pool) -> PoolView:
        project = None if who.may_administer() else who.project
        queue = self._live.queue(pool.name)
        queued, first = queue.waiting_of(project)
        job = None if first is None else self._live.find_serial(first.serial)
        ahead, reason = 0, None
        if first is not None and job is not None:
            ahead = queue.ahead_of_project(first) if project else 0
            reason = self._live.reason(job)
        runners = list(self._live.runners_of(pool.name))
        ready = [runner for runner in runners if runner.node is not None]
        return PoolView(
            pool=pool,
            configured=pool.name in self._configured,
            runners=len(runners),
            ready=len(ready),
            total=_sum(runner.total for runner in ready),
            free=_sum(runner.free for runner in ready),
            running=self._live.holdings.running_in(pool.name, project),
            queued=queued,
            ahead=ahead,
            reason=reason,
        )

    # -- changing

    async def create(self, who: Principal, pool: Pool) -> PoolView:
        """Store a new pool.

        Raises ``errors.Conflict`` where there is one of its name, ``errors.NotFound`` where one of
        its projects is not there.
        """
        need_server_admin(who)
        check_name("name", pool.name)
        taken = errors.Conflict(f"there is a pool {pool.name} already; see: updraft pool list")
        if pool.name in self._live.pools:
            raise taken
        values = {
            "name": pool.name,
            "settings": _settings(pool),
            "draining": pool.draining,
            "created_ns": time.time_ns(),
        }

        def store(connection: Connection) -> None:
            _need_projects(connection, pool.projects)
            queries.insert_pool(connection, values)
            note(connection, who, "create pool", pool.name)

        try:
            await self._database.write(store)
        except IntegrityError:
            raise taken from None
        self._live.pools[pool.name] = pool
        return self._view(who, pool)

    async def update(self, who: Principal, pool: Pool) -> PoolView:
        """Replace a pool's settings; jobs that run go on as they were granted.

        Whether it is draining stays as it is.  Raises ``errors.Conflict`` for one of updraft.toml,
        ``errors.NotFound`` where one of its projects is not there.
        """
        need_server_admin(who)
        known = self._changeable(pool.name)
        pool = replace(pool, draining=known.draining)
        await self._store(who, pool, "update pool")
        for runner in list(self._live.runners_of(pool.name)):
            runner.total = shaped(runner.reported, pool.shape)
            runner.free = self._live.free_beside(runner.name, runner.total)
        self._execution.schedule()
        return self._view(who, pool)

    async def drain(self, who: Principal, name: str, *, draining: bool = True) -> PoolView:
        """Take no new jobs into a pool, or take some again; those that it has are run."""
        need_server_admin(who)
        pool = replace(self._changeable(name), draining=draining)
        await self._store(who, pool, "drain pool" if draining else "undrain pool")
        return self._view(who, pool)

    async def delete(self, who: Principal, name: str) -> None:
        """Forget a pool and the tokens to join it.

        Raises ``errors.Conflict`` while it has runners or jobs.
        """
        need_server_admin(who)
        pool = self._changeable(name)
        runners = list(self._live.runners_of(name))
        if runners:
            raise errors.Conflict(
                f"pool {name} has {_count(len(runners), 'runner')}; remove them first: updraft "
                f"runner remove {runners[0].name}"
            )
        jobs = sum(1 for job in self._live.jobs.values() if job.pool == name)
        if jobs:
            raise errors.Conflict(
                f"pool {name} has {_count(jobs, 'job')}; let it take no new ones and wait, or "
                f"cancel them: updraft pool drain {name}"
            )
        # From here on nothing joins and nothing is submitted to it, also while it is written.
        del self._live.pools[name]

        def store(connection: Connection) -> None:
            queries.delete_pool(connection, name)
            queries.delete_join_tokens_of(connection, name)
            note(connection, who, "delete pool", name)

        try:
            await self._database.write(store)
        except BaseException:
            self._live.pools[name] = pool
            raise

    def _changeable(self, name: str) -> Pool:
        pool = self.find(name)
        if name in self._configured:
            raise errors.Conflict(
                f"pool {name} is not changed by command: it is written in the server's "
                "updraft.toml, or is its own machine; change it there and restart the server"
            )
        return pool

    async def _store(self, who: Principal, pool: Pool, action: str) -> None:
        values = {"settings": _settings(pool), "draining": pool.draining}

        def store(connection: Connection) -> bool:
            _need_projects(connection, pool.projects - self._live.pools[pool.name].projects)
            if not queries.update_pool(connection, pool.name, values):
                return False
            note(connection, who, action, pool.name)
            return True

        if not await self._database.write(store):
            raise _no_pool(pool.name, self._live.pools)
        self._live.pools[pool.name] = pool


def configured_pools(configuration: Configuration) -> list[Pool]:
    """Return the pools of ``updraft.toml``, and this machine's own where it is one."""
    found = [
        Pool(
            name=name,
            shape=Shape(pool.cpus, pool.memory, tuple(sorted(pool.gpus.items()))),
            labels=dict(pool.labels),
            region=pool.region,
            jurisdiction=pool.jurisdiction or LOCAL_JURISDICTION,
            peer_network=pool.peer_network,
            projects=frozenset(pool.projects),
            preemptible=pool.preemptible,
            price_per_hour=pool.price or None,
            time_limit_ms=round(pool.time_limit * 1000) if math.isfinite(pool.time_limit) else None,
            most_runners=pool.max_runners,
        )
        for name, pool in configuration.pools.items()
    ]
    if configuration.server.local_pool and LOCAL_POOL not in configuration.pools:
        found.append(Pool(LOCAL_POOL))
    return found


def check_name(field: str, name: str) -> None:
    """Raise ``errors.BadRequest`` for what cannot be the name of a pool or a runner."""
    if not NAME.fullmatch(name):
        raise errors.BadRequest(
            f"{field}: {name!r} is no name; it has {NAME_RULE}, as in gpu-a100-8"
        )


def _need_projects(connection: Connection, names: Iterable[str]) -> None:
    for name in sorted(names):
        if not can_be_name(name) or find_project(connection, name) is None:
            raise no_project(name)


def _no_pool(name: str, seen: Iterable[str]) -> errors.NotFound:
    known = ", ".join(sorted(seen)) or "none yet"
    return errors.NotFound(f"there is no pool {name!r}; the pools are: {known}")


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _sum(parts: Iterable[Capacity]) -> Capacity:
    found = list(parts)
    return Capacity(
        sum(max(each.cpus_milli, 0) for each in found),
        sum(max(each.memory_bytes, 0) for each in found),
        frozenset().union(*(each.gpus for each in found)),
    )


def _settings(pool: Pool) -> str:
    shape = pool.shape
    return json.dumps(
        {
            "cpus_milli": shape.cpus_milli,
            "memory_bytes": shape.memory_bytes,
            "gpus": [list(each) for each in shape.gpus],
            "labels": pool.labels,
            "region": pool.region,
            "jurisdiction": pool.jurisdiction,
            "peer_network": pool.peer_network,
            "projects": sorted(pool.projects),
            "preemptible": pool.preemptible,
            "price_per_hour": None if pool.price_per_hour is None else str(pool.price_per_hour),
            "time_limit_ms": pool.time_limit_ms,
            "most_runners": pool.most_runners,
        }
    )


def _pool(row: RowMapping) -> Pool:
    stored = json.loads(row["settings"])
    price = stored.pop("price_per_hour")
    shape = Shape(
        stored.pop("cpus_milli"),
        stored.pop("memory_bytes"),
        tuple((kind, count) for kind, count in stored.pop("gpus")),
    )
    return Pool(
        name=row["name"],
        shape=shape,
        projects=frozenset(stored.pop("projects")),
        price_per_hour=None if price is None else Decimal(price),
        draining=bool(row["draining"]),
        **stored,
    )
