"""Credentials of users: sessions that begin with a sign-in, tokens they make, and who one is.

What was looked up is remembered for a few seconds, so that hundreds of requests a second do not
cost a query each.  Any change of access in this process forgets all of it at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

from sqlalchemy import Connection, RowMapping

from updraft import errors
from updraft.model.access import DEFAULT_PROJECT, Principal, Role, Scope
from updraft.server.auth import credentials
from updraft.server.auth.backoff import Backoff, network_of
from updraft.server.auth.passwords import Passwords
from updraft.server.services import accounts
from updraft.server.services.accounts import BROWSER, SESSION, TOKEN
from updraft.server.services.audit import note
from updraft.server.services.authority import need_full_scope
from updraft.server.services.projects import no_project
from updraft.store import access as queries
from updraft.store.database import Database

log = logging.getLogger("updraft.access")

_DAY_SECONDS = 86400.0
_NS = 1_000_000_000
_USE_NOTED_EVERY_NS = 60 * _NS
_KEPT_NS = 30 * 86400 * _NS
"""How long rows of what is no longer good are kept."""
_MAX_KNOWN = 10_000

NO_PROJECT = ""
"""The project of a request that is about none, by somebody who did not choose."""
_MAX_TOKENS = 200
_MAX_SECONDS = 10 * 365 * _DAY_SECONDS


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """How a session begins, and how long it lasts: unused, and at most; in a browser, for the
    pages under /login.
    """

    idle_seconds: float = 14 * _DAY_SECONDS
    absolute_seconds: float = 90 * _DAY_SECONDS
    browser_seconds: float = 12 * 3600.0
    known_seconds: float = 5.0
    """For how long another process's changes may go unnoticed."""
    passwords: bool = True
    """Whether a password begins one."""


@dataclass(frozen=True, slots=True)
class SignedIn:
    """A new credential; ``text`` is shown this once."""

    text: str
    user: str
    expires_ns: int | None


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token to be made."""

    name: str
    scope: Scope = Scope.RUN
    expires_seconds: float | None = None
    """None: never."""
    project: str | None = None
    """Good for this one only; None: for all that are the user's."""
    user: str | None = None
    """None: the caller; a server admin makes some for others."""


@dataclass(frozen=True, slots=True)
class _Known:
    principal: Principal
    until: float
    good_until_ns: int | None


_Find = Callable[[], Awaitable[RowMapping | None]]
"""Looks for a stored credential; None: it is not good."""


class SignIn:
    """Signs users in, and tells who holds a credential.  ``changed``: as of ``Accounts``."""

    def __init__(
        self,
        database: Database,
        passwords: Passwords,
        limits: SessionLimits,
        changed: Callable[[], Awaitable[None]],
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._database = database
        self._passwords = passwords
        self._limits = limits
        self._changed = changed
        self._clock_ns = clock_ns
        # Whoever tries somebody's name keeps their own address from it.  A person is kept waiting
        # only by many addresses together.
        self._tries = Backoff(free=5, longest_seconds=30)
        self._names = Backoff(free=50, longest_seconds=30)
        self._peers = Backoff(free=20, longest_seconds=900)
        self._known: dict[tuple[bytes, str | None], _Known] = {}
        self._familiar: set[bytes] = set()
        self._generation = 0
        self._noted_ns: dict[str, int] = {}
        self._noting: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Finish what is being written."""
        await asyncio.gather(*self._noting, return_exceptions=True)

    # -- signing in

    @property
    def takes_passwords(self) -> bool:
        """Whether users sign in with a password of this server."""
        return self._limits.passwords

    async def check_password(self, name: str, password: str, peer: str) -> RowMapping:
        """Return the user.  A wrong name, a wrong password and a disabled user are one error.

        Raises ``errors.NotSignedIn``, ``errors.TooManyRequests`` after several failures, and
        ``errors.NotAllowed`` where no password is taken.
        """
        if not self.takes_passwords:
            raise errors.NotAllowed(
                "this server takes no passwords (sign_in.passwords); sign in through its identity "
                "provider, updraft login URL, or with a token: updraft login URL --token-stdin"
            )
        key, network = name[:100], network_of(peer)
        by_key = [(self._tries, f"{network} {key}"), (self._names, key)]
        if network:
            by_key.append((self._peers, network))
        for backoff, each in by_key:
            backoff.check(each)
        # Counted before it is known, or tries made at once would all be the first.
        for backoff, each in by_key:
            backoff.failed(each)
        user = None
        if accounts.can_be_name(name):
            user = await self._database.read(lambda c: queries.find_user(c, name))
        stored = None if user is None or user["disabled"] else user["password_hash"]
        if not await self._passwords.matches(stored, password) or user is None:
            raise errors.NotSignedIn("this is not a user's name with their password")
        self._tries.succeeded(f"{network} {key}")
        self._names.succeeded(key)
        if network:
            self._peers.forgive(network)
        return user

    async def with_password(
        self, name: str, password: str, *, peer: str, client: str = ""
    ) -> SignedIn:
        """Begin a session.  ``client``: what the user calls where they sign in from.  Raises as
        ``check_password`` does.
        """
        accounts.check_text("client", client)
        user = await self.check_password(name, password, peer)
        return await self.begin_session(user, peer=peer, client=client)

    async def begin_session(
        self, user: RowMapping, *, peer: str, client: str = "", kind: str = SESSION
    ) -> SignedIn:
        """Begin a session of a user who has proved who they are.  ``kind``: also ``BROWSER``.

        Raises ``errors.NotSignedIn`` when what they proved it by is not good any more.
        """
        made = credentials.new(
            credentials.Kind.BROWSER if kind == BROWSER else credentials.Kind.USER
        )
        limits = self._limits
        seconds = limits.browser_seconds if kind == BROWSER else limits.absolute_seconds
        now = self._clock_ns()
        values = {
            **_values(made, kind, user["serial"], now),
            "name": client,
            "scope": Scope.ADMIN,
            "expires_ns": now + round(seconds * _NS),
        }
        who = Principal(user["name"], peer=peer)

        def write(connection: Connection) -> None:
            now_is = queries.find_user(connection, user["name"])
            if (
                now_is is None
                or now_is["disabled"]
                or (now_is["password_hash"] != user["password_hash"])
            ):
                raise errors.NotSignedIn("your access changed meanwhile; sign in again")
            queries.delete_old_credentials(connection, now - _KEPT_NS)
            queries.insert_credential(connection, values)
            note(connection, who, "sign in", user["name"], credential=made.id, kind=kind)

        await self._database.write(write)
        return SignedIn(made.text, user["name"], now + round(seconds * _NS))

    async def browser_user(self, text: str) -> RowMapping | None:
        """Return the user whom a browser's cookie is good for, None when there is none."""
        row = await self._good(text, credentials.Kind.BROWSER)
        if row is None:
            return None
        name = row["user_name"]
        return await self._database.read(lambda connection: queries.find_user(connection, name))

    async def end(self, text: str) -> None:
        """End a session by the credential itself: a browser's, which has no principal."""
        credential = credentials.parse(text)
        if credential is None or await self._good(text, credential.kind) is None:
            return
        await self._database.write(
            lambda c: queries.revoke_credential(c, credential.id, self._clock_ns())
        )
        await self._changed()

    # -- tokens

    async def create_token(self, who: Principal, new: NewToken) -> tuple[RowMapping, str]:
        """Make a token; return it and its text, which is stored nowhere.

        No token can make one that may do more than itself.
        """
        need_full_scope(who)
        if new.user not in (None, who.owner) and not who.may_administer():
            raise errors.NotAllowed("only a server admin makes tokens for others")
        if who.confined and new.project != who.project:
            raise errors.NotAllowed(
                f"your token is for project {who.project} only, and can make no other kind"
            )
        if not new.name:
            raise errors.BadRequest("name: a token needs one, so that it can be told from others")
        accounts.check_text("name", new.name)
        seconds = new.expires_seconds
        if seconds is not None and not 1 <= seconds <= _MAX_SECONDS:
            raise errors.BadRequest("expires_seconds: a second to ten years, or null for never")
        made = credentials.new(credentials.Kind.USER)
        now = self._clock_ns()
        owner = new.user or who.owner

        def write(connection: Connection) -> RowMapping:
            known = accounts.can_be_name(owner)
            user = queries.find_user(connection, owner) if known else None
            if user is None:
                raise errors.NotFound(
                    f"there is no user {owner!r} to make a token for; name one: "
                    "updraft token create --user NAME"
                )
            if new.project is not None:
                _check_project(connection, user, new.project)
            if len(queries.credentials_of(connection, user["serial"], now, (TOKEN,))) >= (
                _MAX_TOKENS
            ):
                raise errors.Conflict(
                    f"{owner} has {_MAX_TOKENS} tokens; revoke some: updraft token revoke ID"
                )
            values = {
                **_values(made, TOKEN, user["serial"], now),
                "name": new.name,
                "scope": new.scope,
                "project": new.project,
                "expires_ns": None if seconds is None else now + round(seconds * _NS),
            }
            queries.insert_credential(connection, values)
            details = {"scope": new.scope, "project": new.project, "user": owner}
            note(connection, who, "create token", made.id, **details)
            stored = queries.find_credential(connection, made.id)
            assert stored is not None  # noqa: S101 - it was just written
            return stored

        return await self._database.write(write), made.text

    async def list(self, who: Principal, user: str | None = None) -> Sequence[RowMapping]:
        """Return a user's good sessions and tokens, oldest first: one's own, or as an admin."""
        owner = user or who.owner
        if owner != who.owner and not who.may_administer():
            raise errors.NotAllowed("only a server admin sees others' tokens")

        def read(connection: Connection) -> Sequence[RowMapping]:
            found = accounts.find(connection, owner)
            now = self._clock_ns()
            rows = queries.credentials_of(connection, found["serial"], now, (SESSION, TOKEN))
            return [row for row in rows if not self._is_idle(row, now)]

        return await self._database.read(read)

    async def revoke(self, who: Principal, credential_id: str) -> None:
        """Revoke a token, or end a session, at once.

        Everybody revokes their own; a token that may do less only itself.  Raises
        ``errors.NotFound``, for another's too.
        """
        if credential_id != who.credential:
            need_full_scope(who)

        known = credentials.can_be_id(credential_id)

        def write(connection: Connection) -> None:
            row = queries.find_credential(connection, credential_id) if known else None
            mine = row is not None and (row["user_name"] == who.owner or who.may_administer())
            if row is None or not mine or row["revoked_ns"] is not None:
                raise errors.NotFound(
                    f"there is no token {credential_id!r}; see: updraft token list"
                )
            queries.revoke_credential(connection, credential_id, self._clock_ns())
            note(connection, who, "revoke token", credential_id, user=row["user_name"])

        await self._database.write(write)
        await self._changed()

    # -- who one is

    def forget(self) -> None:
        """Look everything up again: access has changed."""
        self._generation += 1
        self._known.clear()

    def is_familiar(self, token: str) -> bool:
        """Whether the token was good when it was looked at last."""
        return _digest(token) in self._familiar

    async def authenticate(
        self, token: str, project: str | None, peer: str = "", *, need_project: bool = True
    ) -> Principal:
        """Return who holds the token, in ``project``, or in the one that is theirs.

        ``need_project``: whether the request is about a project; else one who has several and names
        none, or who has none, is a viewer of the project ``""``, which is none.

        Raises ``errors.NotSignedIn`` with one message for whatever is wrong with the token,
        ``errors.NotFound`` for a project that is not theirs, and ``errors.BadRequest`` when they
        have several and name none.
        """
        digest = _digest(token)
        key = (digest, NO_PROJECT if project is None and not need_project else project)
        try:
            who = await self._who(key, lambda: self._good(token, credentials.Kind.USER), project)
        except errors.NotSignedIn:
            self._familiar.discard(digest)
            raise
        if len(self._familiar) >= _MAX_KNOWN:
            self._familiar.clear()
        self._familiar.add(digest)
        return replace(who, peer=peer) if peer else who

    async def renew(self, who: Principal) -> Principal:
        """Return who somebody is by now whose token was seen, and whose connection is still open.

        Raises as ``authenticate`` does.  A session is not unused while something of it is open.
        """
        if not who.credential:
            return who  # the kernel says who they are
        key = (who.credential.encode(), who.project)
        found = await self._who(key, lambda: self._still_good(who.credential), who.project or None)
        return replace(found, peer=who.peer)

    async def _who(
        self, key: tuple[bytes, str | None], find: _Find, project: str | None
    ) -> Principal:
        known = self._known.get(key)
        now_ns = self._clock_ns()
        if known is None or known.until < time.monotonic() or _is_past(known.good_until_ns, now_ns):
            generation = self._generation
            known = await self._look_up(key, find, project)
            while generation != self._generation:  # access changed while we looked
                generation = self._generation
                known = await self._look_up(key, find, project)
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            self._known[key] = known
        self._note_used(known.principal.credential, now_ns)
        return known.principal

    async def _look_up(
        self, key: tuple[bytes, str | None], find: _Find, project: str | None
    ) -> _Known:
        row = await find()
        if row is None:
            raise errors.NotSignedIn(f"you are not signed in here; {errors.SIGN_IN}")
        serial = row["user_serial"]

        def read(connection: Connection) -> tuple[dict[str, Role], set[str]]:
            mine = queries.memberships_of(connection, serial)
            roles = {each["project_name"]: Role(each["role"]) for each in mine}
            if not row["server_admin"]:
                return roles, set(roles)
            return roles, {each["name"] for each in queries.all_projects(connection)}

        roles, reachable = await self._database.read(read)
        try:
            asked = project or row["project"]
            if asked is None and row["server_admin"]:
                # Who is put where decides nothing about a server admin, who is everywhere.
                asked = DEFAULT_PROJECT
            chosen = _choose(asked, row["project"], roles, reachable)
        except (errors.BadRequest, errors.NotFound):
            if key[1] != NO_PROJECT:
                raise
            chosen = NO_PROJECT
        principal = Principal(
            owner=row["user_name"],
            project=chosen,
            role=Role.ADMIN if row["server_admin"] else roles.get(chosen, Role.VIEWER),
            server_admin=row["server_admin"],
            scope=Scope(row["scope"]),
            member=chosen in roles,
            confined=row["project"] is not None,
            credential=row["id"],
        )
        until = time.monotonic() + self._limits.known_seconds
        return _Known(principal, until, row["expires_ns"])

    async def _good(self, text: str, kind: credentials.Kind) -> RowMapping | None:
        """Return the stored credential that ``text`` is, None when it is not good for anything."""
        credential = credentials.parse(text)
        if credential is None or credential.kind is not kind:
            return None
        row = await self._database.read(
            lambda connection: queries.find_credential(connection, credential.id)
        )
        if row is None or not credential.matches(row["digest"]):
            return None
        now = self._clock_ns()
        kinds = (BROWSER,) if kind is credentials.Kind.BROWSER else (SESSION, TOKEN)
        if row["kind"] not in kinds or _has_ended(row, now) or self._is_idle(row, now):
            return None
        return row

    async def _still_good(self, credential_id: str) -> RowMapping | None:
        row = await self._database.read(lambda c: queries.find_credential(c, credential_id))
        return None if row is None or _has_ended(row, self._clock_ns()) else row

    def _is_idle(self, row: RowMapping, now_ns: int) -> bool:
        if row["kind"] != SESSION:
            return False
        used = max(row["last_used_ns"] or row["created_ns"], self._noted_ns.get(row["id"], 0))
        return bool(now_ns - used > self._limits.idle_seconds * _NS)

    def _note_used(self, credential_id: str, now_ns: int) -> None:
        """Have the use written down, at most once a minute."""
        if 0 <= now_ns - self._noted_ns.get(credential_id, 0) < _USE_NOTED_EVERY_NS:
            return
        if len(self._noted_ns) >= _MAX_KNOWN:
            self._noted_ns.clear()
        self._noted_ns[credential_id] = now_ns

        async def write() -> None:
            with contextlib.suppress(errors.Unavailable):  # a full disk keeps nobody out
                await self._database.write(
                    lambda connection: queries.note_used(connection, credential_id, now_ns)
                )

        task = asyncio.create_task(write(), name="note use of a credential")
        self._noting.add(task)
        task.add_done_callback(self._noting.discard)


def _choose(
    chosen: str | None, restriction: str | None, roles: dict[str, Role], reachable: set[str]
) -> str:
    """Return the project of a request.  Raises as ``SignIn.authenticate`` does."""
    if chosen is None:
        if len(roles) == 1:
            return next(iter(roles))
        if DEFAULT_PROJECT in roles:
            return DEFAULT_PROJECT
        if not roles:
            raise errors.NotFound("you are in no project; ask an admin of one to add you")
        raise errors.BadRequest(
            f"you are in several projects; name one of {', '.join(sorted(roles))}: "
            "UPDRAFT_PROJECT=NAME"
        )
    if chosen not in reachable or restriction not in (None, chosen):
        raise no_project(chosen)
    return chosen


def _check_project(connection: Connection, user: RowMapping, project: str) -> None:
    mine = {each["project_name"] for each in queries.memberships_of(connection, user["serial"])}
    known = accounts.can_be_name(project)
    there = known and queries.find_project(connection, project) is not None
    if not there or (project not in mine and not user["server_admin"]):
        raise no_project(project)


def _values(
    made: credentials.Credential, kind: str, user_serial: int, now_ns: int
) -> dict[str, object]:
    return {
        "id": made.id,
        "kind": kind,
        "user_serial": user_serial,
        "digest": made.digest,
        "created_ns": now_ns,
        "project": None,
    }


def _has_ended(row: RowMapping, now_ns: int) -> bool:
    """Whether a stored credential is revoked or has expired, or its user may not come any more."""
    ended = row["revoked_ns"] is not None or _is_past(row["expires_ns"], now_ns)
    return bool(ended or row["disabled"] or row["removed_ns"] is not None)


def _digest(token: str) -> bytes:
    return sha256(token.encode(errors="replace")).digest()


def _is_past(moment_ns: int | None, now_ns: int) -> bool:
    return moment_ns is not None and moment_ns <= now_ns
