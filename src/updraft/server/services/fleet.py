"""Pools, and the runners that join them.

What administrators do: make pools and join tokens, drain and remove.  What machines do: join with a
token, once, and be admitted with their own from then on.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, RowMapping
from sqlalchemy.exc import IntegrityError

from updraft import errors
from updraft.configuration import Configuration
from updraft.model.access import Principal
from updraft.model.pool import LOCAL_JURISDICTION, LOCAL_POOL, Pool, Runner, Shape
from updraft.scheduling.capacity import Capacity
from updraft.server.auth import credentials
from updraft.server.services.execution import Execution
from updraft.server.services.live import LiveRunner
from updraft.store import fleet as queries
from updraft.store.database import Database

_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")
_NAME_RULE = "up to 63 small letters, digits, dots and hyphens, as in gpu-a100-8"
_NAME_TRIES = 1000
_REFUSED = "this join token is not valid, or not any more; make one: updraft runner token POOL"


@dataclass(frozen=True, slots=True)
class JoinRequest:
    """What a machine says of itself when it joins."""

    name: str
    """As it would like to be called; empty: by its host's name."""
    host: str
    capacity: dict[str, Any]
    shared: bool
    """Whether it keeps the tasks of several owners apart."""
    serves: str
    """Whose tasks it takes if it is not shared; empty: those of the join token's maker."""


@dataclass(frozen=True, slots=True)
class Place:
    """A machine's place in a pool."""

    runner: Runner
    token: str
    """What it proves itself with; shown here only."""


@dataclass(frozen=True, slots=True)
class RunnerView:
    """A runner as an administrator sees it."""

    row: RowMapping | None
    """None for the local runner of a personal server."""
    live: LiveRunner
    tasks: int


class Fleet:
    """The pools and runners of one server."""

    def __init__(
        self, database: Database, execution: Execution, configured: Iterable[Pool] = ()
    ) -> None:
        self._database = database
        self._execution = execution
        self._live = execution.live
        self._configured = {pool.name: pool for pool in configured}
        self._digests: dict[str, tuple[bytes, str]] = {}
        """Of each runner's credential: the digest, and the runner's name."""

    async def load(self) -> None:
        """Take up what is stored; runners are away until they connect."""
        pools, runners = await self._database.read(
            lambda c: (queries.all_pools(c), queries.all_runners(c))
        )
        self._live.pools.update(self._configured)
        for row in pools:
            if row["name"] not in self._configured:
                self._live.pools[row["name"]] = _pool(row)
        for row in runners:
            self._know(row)

    # -- runners

    async def join(self, token: str, request: JoinRequest) -> Place:
        """Make a machine a runner of the token's pool.

        Raises ``errors.NotSignedIn`` when the token is not valid, ``errors.BadRequest``.
        """
        carried = credentials.parse(token)
        if carried is None or carried.kind is not credentials.Kind.JOIN:
            raise errors.NotSignedIn(_REFUSED)
        row = await self._database.read(lambda c: queries.find_join_token(c, carried.id))
        if row is None or not carried.matches(row["digest"]):
            raise errors.NotSignedIn(_REFUSED)
        pool = self._live.pools.get(row["pool"])
        if pool is None:
            raise errors.Conflict(f"the token's pool {row['pool']} is gone; use another token")
        own = credentials.new(credentials.Kind.RUNNER)
        wanted = request.name or _host_name(request.host)
        _check_name("name", wanted)
        values = {
            "pool": pool.name,
            "credential": own.id,
            "digest": own.digest,
            "host": request.host,
            "serves": None if request.shared else request.serves or row["created_by"],
            "draining": False,
            "capacity": json.dumps(request.capacity),
            "joined_ns": time.time_ns(),
        }

        def store(connection: Connection) -> str | None:
            if not queries.use_join_token(connection, carried.id, time.time_ns()):
                return None
            taken = {runner["name"] for runner in queries.all_runners(connection)}
            taken.update(self._live.runners)
            if pool.most_runners is not None:
                there = sum(
                    1 for each in queries.all_runners(connection) if each["pool"] == pool.name
                )
                if there >= pool.most_runners:
                    raise errors.Conflict(
                        f"pool {pool.name} has all of its {there} runners; raise max_runners"
                    )
            name = _free_name(wanted, taken, exact=bool(request.name))
            queries.insert_runner(connection, {**values, "name": name})
            return name

        name = await self._database.write(store)
        if name is None:
            raise errors.NotSignedIn(_REFUSED)
        rows = await self._database.read(queries.all_runners)
        self._know(next(row for row in rows if row["name"] == name))
        return Place(self._live.runners[name].known, own.text)

    def admit(self, carried: credentials.Credential) -> Runner:
        """Return the runner that carries this credential.  Raises ``errors.NotSignedIn``."""
        digest, name = self._digests.get(carried.id, (b"", ""))
        runner = self._live.runners.get(name)
        if not carried.matches(digest) or runner is None:
            raise errors.NotSignedIn("this runner was removed; join again: updraft runner join URL")
        return runner.known

    def runners(self, who: Principal) -> list[RunnerView]:
        """Return all runners.  Raises ``errors.NotAllowed``."""
        _authorise(who)
        return [
            RunnerView(None, runner, len(self._live.attempts_on(runner.name)))
            for runner in sorted(self._live.runners.values(), key=lambda each: each.name)
        ]

    def runner(self, who: Principal, name: str) -> RunnerView:
        """Return one runner.  Raises ``errors.NotFound``, ``errors.NotAllowed``."""
        _authorise(who)
        found = self._find(name)
        return RunnerView(None, found, len(self._live.attempts_on(name)))

    async def drain(self, who: Principal, name: str, *, draining: bool = True) -> RunnerView:
        """Give a runner no new tasks, or give it some again."""
        _authorise(who)
        runner = self._find(name)
        await self._database.write(lambda c: queries.update_runner(c, name, {"draining": draining}))
        runner.known = replace(runner.known, draining=draining)
        self._execution.schedule()
        return self.runner(who, name)

    async def remove(self, who: Principal, name: str, *, force: bool = False) -> None:
        """Forget a runner; its token is worth nothing any more.

        Raises ``errors.Conflict`` while it has tasks, unless ``force``: they are then given up.
        """
        _authorise(who)
        runner = self._find(name)
        if not runner.known.remote:
            raise errors.Conflict("the local runner is this server's own; end it: updraft stop")
        count = len(self._live.attempts_on(name))
        if count and not force:
            raise errors.Conflict(
                f"runner {name} has {count} tasks; drain it first: updraft runner drain {name}, "
                "or give them up with --force"
            )
        await self._database.write(lambda c: queries.delete_runner(c, name))
        self._digests = {
            identity: known for identity, known in self._digests.items() if known[1] != name
        }
        self._execution.runner_removed(runner)

    # -- join tokens

    async def make_join_token(
        self, who: Principal, pool: str, lives_seconds: float, most_uses: int | None
    ) -> str:
        """Return a token with which machines join ``pool``; it is shown here only."""
        _authorise(who)
        self._pool(pool)
        if lives_seconds <= 0:
            raise errors.BadRequest("expires: a token must live for some time, as 1h or 7d")
        made = credentials.new(credentials.Kind.JOIN)
        now = time.time_ns()
        values = {
            "credential": made.id,
            "digest": made.digest,
            "pool": pool,
            "created_by": who.owner,
            "created_ns": now,
            "expires_ns": now + int(lives_seconds * 1e9),
            "used": 0,
            "most_uses": most_uses,
        }
        await self._database.write(lambda c: queries.insert_join_token(c, values))
        return made.text

    # -- pools

    async def create_pool(self, who: Principal, pool: Pool) -> Pool:
        """Store a new pool.  Raises ``errors.Conflict`` where there is one of its name."""
        _authorise(who)
        _check_name("name", pool.name)
        if pool.name in self._live.pools:
            raise errors.Conflict(f"there is a pool {pool.name} already; see: updraft pool list")
        values = {
            "name": pool.name,
            "settings": _settings(pool),
            "draining": pool.draining,
            "created_ns": time.time_ns(),
        }
        try:
            await self._database.write(lambda c: queries.insert_pool(c, values))
        except IntegrityError:
            raise errors.Conflict(f"there is a pool {pool.name} already") from None
        self._live.pools[pool.name] = pool
        return pool

    def _pool(self, name: str) -> Pool:
        pool = self._live.pools.get(name)
        if pool is None:
            known = ", ".join(sorted(self._live.pools)) or "none yet"
            raise errors.NotFound(f"there is no pool {name!r}; the pools are: {known}")
        return pool

    # -- inside

    def _find(self, name: str) -> LiveRunner:
        runner = self._live.runners.get(name)
        if runner is None:
            raise errors.NotFound(f"there is no runner {name!r}; see: updraft runner list")
        return runner

    def _know(self, row: RowMapping) -> None:
        known = Runner(
            row["name"], row["pool"], serves=row["serves"], draining=bool(row["draining"])
        )
        capacity = json.loads(row["capacity"])
        total = capacity_of(capacity)
        self._digests[row["credential"]] = (row["digest"], known.name)
        self._live.runners[known.name] = LiveRunner(
            known=known,
            total=total,
            free=self._live.free_beside(known.name, total),
            seen=time.monotonic(),
            devices=capacity["gpus"],
        )


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


def capacity_of(reported: dict[str, Any]) -> Capacity:
    """Return what a runner said that it has."""
    return Capacity(
        reported["cpus_milli"],
        reported["memory_bytes"],
        frozenset(str(device["uuid"]) for device in reported["gpus"]),
    )


def _authorise(who: Principal) -> None:
    if not who.may_administer():
        raise errors.NotAllowed("only an administrator of the server may do that")


def _check_name(field: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise errors.BadRequest(f"{field}: {name!r} is no name; it has {_NAME_RULE}")


def _host_name(host: str) -> str:
    """Return a runner's name from its host's."""
    name = re.sub(r"[^a-z0-9-]+", "-", host.partition(".")[0].lower()).strip("-")
    return name[:50] or "runner"


def _free_name(wanted: str, taken: set[str], *, exact: bool) -> str:
    if wanted not in taken:
        return wanted
    if exact:
        raise errors.Conflict(f"there is a runner {wanted} already; choose another --name")
    for number in range(2, _NAME_TRIES):
        if f"{wanted}-{number}" not in taken:
            return f"{wanted}-{number}"
    raise errors.Conflict(f"there are too many runners called {wanted}; choose a --name")


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
