"""The runners of the server's pools.

What administrators do: make and revoke join tokens, drain and remove.  What machines do: join with
a token, once, and be admitted with their own from then on.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, RowMapping

import updraft
from updraft import errors
from updraft.model.access import Principal
from updraft.model.pool import Pool, Runner
from updraft.scheduling.capacity import shaped
from updraft.server.auth import credentials
from updraft.server.services.accounts import can_be_name
from updraft.server.services.audit import note
from updraft.server.services.authority import need_server_admin
from updraft.server.services.execution import Execution
from updraft.server.services.live import LiveRunner, Upgrade
from updraft.server.services.pools import Pools, check_name
from updraft.store import fleet as queries
from updraft.store.access import find_user
from updraft.store.database import Database
from updraft.wire import frames

_NAME_TRIES = 1000
_TOO_OLD = "its release does not know how; upgrade Updraft on its machine, with what installed it"
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
    joined_as: tuple[str, ...] = ()
    """The ids of the credentials that this machine has from joining before."""
    peer: str = ""
    """The address that it asks from."""


@dataclass(frozen=True, slots=True)
class Place:
    """A machine's place in a pool."""

    runner: Runner
    token: str
    """What it proves itself with; shown here only."""


@dataclass(frozen=True, slots=True)
class RunnerView:
    """A runner as an administrator sees it."""

    live: LiveRunner
    tasks: int

    @property
    def outdated(self) -> bool:
        """Whether it runs another release than this server."""
        return self.live.release not in ("", updraft.__version__)


class Fleet:
    """The runners of one server, and its ``pools``."""

    def __init__(
        self, database: Database, execution: Execution, configured: Iterable[Pool] = ()
    ) -> None:
        self._database = database
        self._execution = execution
        self._live = execution.live
        self.pools = Pools(database, execution, configured)
        self._digests: dict[str, tuple[bytes, str]] = {}
        """Of each runner's credential: the digest, and the runner's name."""

    async def load(self) -> None:
        """Take up what is stored; runners are away until they connect."""
        await self.pools.load()
        for row in await self._database.read(queries.all_runners):
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
        check_name("name", wanted)
        self._refuse_twice(request.joined_as)
        await self._check_serves(request.serves, row["created_by"])
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
            if pool.name not in self._live.pools:
                raise errors.Conflict(f"pool {pool.name} was just deleted; use another token")
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
            # By the authority of whoever made the token, from where the machine is.
            maker = Principal(row["created_by"], peer=request.peer)
            note(connection, maker, "join runner", name, pool=pool.name, token=carried.id)
            return name

        name = await self._database.write(store)
        if name is None:
            raise errors.NotSignedIn(_REFUSED)
        rows = await self._database.read(queries.all_runners)
        self._know(next(row for row in rows if row["name"] == name))
        return Place(self._live.runners[name].known, own.text)

    def _refuse_twice(self, joined_as: Iterable[str]) -> None:
        """Refuse a machine that is a runner already: its CPUs would count twice.

        Raises ``errors.Conflict``.
        """
        for credential in joined_as:
            if (known := self._digests.get(credential)) is not None:
                raise errors.Conflict(
                    f"this machine is runner {known[1]} already; to join it anew, remove that "
                    f"first: updraft runner remove {known[1]}"
                )

    async def _check_serves(self, owner: str, maker: str) -> None:
        """Refuse a runner that would wait for the tasks of nobody.

        Raises ``errors.BadRequest``.
        """
        # Whoever owns the server's socket is no user, and has jobs all the same.
        if owner in ("", maker, f"uid:{os.geteuid()}"):
            return
        found = None
        if can_be_name(owner):
            found = await self._database.read(lambda c: find_user(c, owner))
        if found is None:
            raise errors.BadRequest(
                f"serves: there is no user {owner!r}; see: updraft user list, or make them: "
                "updraft user add"
            )

    def admit(self, carried: credentials.Credential) -> Runner:
        """Return the runner that carries this credential.  Raises ``errors.RunnerRemoved``."""
        digest, name = self._digests.get(carried.id, (b"", ""))
        runner = self._live.runners.get(name)
        if not carried.matches(digest) or runner is None:
            raise errors.RunnerRemoved(
                "this runner was removed; join again: updraft runner join URL"
            )
        return runner.known

    def runners(self, who: Principal) -> list[RunnerView]:
        """Return all runners.  Raises ``errors.NotAllowed``."""
        need_server_admin(who)
        return [
            RunnerView(runner, self._live.count_on(runner.name))
            for runner in sorted(self._live.runners.values(), key=lambda each: each.name)
        ]

    def runner(self, who: Principal, name: str) -> RunnerView:
        """Return one runner.  Raises ``errors.NotFound``, ``errors.NotAllowed``."""
        need_server_admin(who)
        found = self._find(name)
        return RunnerView(found, self._live.count_on(name))

    async def drain(self, who: Principal, name: str, *, draining: bool = True) -> RunnerView:
        """Give a runner no new tasks, or give it some again."""
        need_server_admin(who)
        runner = self._joined(name)

        def store(connection: Connection) -> None:
            queries.update_runner(connection, name, {"draining": draining})
            note(connection, who, "drain runner" if draining else "undrain runner", name)

        await self._database.write(store)
        runner.known = replace(runner.known, draining=draining)
        self._execution.schedule()
        return self.runner(who, name)

    async def upgrade(self, who: Principal, name: str) -> RunnerView:
        """Let a runner take this server's release from its wheels, under its running tasks.

        One that has it, or is about to, is left alone.  Raises ``errors.Conflict`` with the mend
        where it cannot.
        """
        view = self.runner(who, name)
        runner = view.live
        if not view.outdated or (runner.upgrade is not None and runner.upgrade.running):
            return view
        if not runner.known.remote:
            raise errors.Conflict("the local runner is of the server's own release once it is idle")
        if runner.control is None:
            raise errors.Conflict(f"runner {name} is away; upgrade it when it is back")
        hindrance = _TOO_OLD if runner.upgrade is None else runner.upgrade.hindrance
        if hindrance:
            raise errors.Conflict(f"runner {name} cannot be upgraded from here: {hindrance}")
        release = updraft.__version__

        def store(connection: Connection) -> None:
            note(connection, who, "upgrade runner", name, release=release)

        await self._database.write(store)
        if runner.control is not None:
            runner.upgrade = Upgrade("", running=True)
            runner.control.send_message(frames.UPGRADE, {"release": release})
        return self.runner(who, name)

    async def remove(self, who: Principal, name: str, *, force: bool = False) -> None:
        """Forget a runner; its token is worth nothing any more.

        Raises ``errors.Conflict`` while it has tasks, unless ``force``: they are then given up.
        """
        need_server_admin(who)
        runner = self._joined(name)
        count = self._live.count_on(name)
        if count and not force:
            raise errors.Conflict(
                f"runner {name} has {count} {'task' if count == 1 else 'tasks'}; drain it first: "
                f"updraft runner drain {name}, or give them up with --force"
            )

        def store(connection: Connection) -> None:
            queries.delete_runner(connection, name)
            note(connection, who, "remove runner", name, pool=runner.pool, tasks=count)

        await self._database.write(store)
        self._digests = {
            identity: known for identity, known in self._digests.items() if known[1] != name
        }
        self._execution.runners.removed(self._live.runners.get(name, runner))

    # -- join tokens

    async def make_join_token(
        self, who: Principal, pool: str, lives_seconds: float, most_uses: int | None
    ) -> str:
        """Return a token with which machines join ``pool``; it is shown here only."""
        need_server_admin(who)
        self.pools.find(pool)
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

        def store(connection: Connection) -> None:
            queries.delete_useless_join_tokens(connection, now)
            queries.insert_join_token(connection, values)
            note(connection, who, "create join token", made.id, pool=pool, uses=most_uses)

        await self._database.write(store)
        return made.text

    async def join_tokens(self, who: Principal) -> Sequence[RowMapping]:
        """Return the join tokens that are of use, newest first."""
        need_server_admin(who)
        rows = await self._database.read(queries.all_join_tokens)
        now = time.time_ns()
        return [
            row
            for row in rows
            if row["expires_ns"] > now
            and (row["most_uses"] is None or row["used"] < row["most_uses"])
        ]

    async def revoke_join_token(self, who: Principal, token_id: str) -> None:
        """Let nothing join with a token any more; what has joined stays.

        Raises ``errors.NotFound``.
        """
        need_server_admin(who)

        def store(connection: Connection) -> bool:
            # What cannot be an id is none; a database might not even take it.
            if not token_id.isalnum() or not queries.delete_join_token(connection, token_id):
                return False
            note(connection, who, "revoke join token", token_id)
            return True

        if not await self._database.write(store):
            raise errors.NotFound(
                f"there is no join token {token_id!r}; see: updraft runner tokens list"
            )

    # -- inside

    def _find(self, name: str) -> LiveRunner:
        runner = self._live.runners.get(name)
        if runner is None:
            raise errors.NotFound(f"there is no runner {name!r}; see: updraft runner list")
        return runner

    def _joined(self, name: str) -> LiveRunner:
        runner = self._find(name)
        if not runner.known.remote:
            raise errors.Conflict("the local runner is this server's own; end it: updraft stop")
        return runner

    def _know(self, row: RowMapping) -> None:
        known = Runner(
            row["name"],
            row["pool"],
            serves=row["serves"],
            draining=bool(row["draining"]),
            credential=row["credential"],
        )
        capacity = json.loads(row["capacity"])
        pool = self._live.pools.get(known.pool)
        total = shaped(capacity, None if pool is None else pool.shape)
        self._digests[row["credential"]] = (row["digest"], known.name)
        free = self._live.free_beside(known.name, total)
        self._live.add_runner(
            LiveRunner(known, total, free, seen=time.monotonic(), reported=capacity)
        )


def _host_name(host: str) -> str:
    """Return a runner's name from its host's."""
    name = re.sub(r"[^a-z0-9-]+", "-", host.partition(".")[0].lower()).strip("-")
    return name[:50] or "runner"


def _free_name(wanted: str, taken: set[str], *, exact: bool) -> str:
    if wanted not in taken:
        return wanted
    if exact:
        raise errors.Conflict(
            f"there is a runner {wanted} already; choose another --name, or remove it: "
            f"updraft runner remove {wanted}"
        )
    for number in range(2, _NAME_TRIES):
        if f"{wanted}-{number}" not in taken:
            return f"{wanted}-{number}"
    raise errors.Conflict(f"there are too many runners called {wanted}; choose a --name")
