"""Users: made, disabled, removed, and their passwords."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import Connection, RowMapping

from updraft import errors
from updraft.model.access import Principal, Role
from updraft.server.auth.backoff import Backoff
from updraft.server.auth.passwords import Passwords
from updraft.server.services.audit import note
from updraft.server.services.authority import need_full_scope, need_server_admin
from updraft.store import access as queries
from updraft.store.database import Database, Work

T = TypeVar("T")

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_MAX_TEXT = 200

SESSION, TOKEN, BROWSER = "session", "token", "browser"
"""Kinds of stored credentials."""


@dataclass(frozen=True, slots=True)
class NewUser:
    """A user to be made."""

    name: str
    display: str = ""
    email: str = ""
    password: str | None = None
    """None: they sign in by OpenID Connect or by a token, or get one later."""
    server_admin: bool = False


class Accounts:
    """The users of the server.  ``changed`` is called once a change is stored."""

    def __init__(
        self, database: Database, passwords: Passwords, changed: Callable[[], Awaitable[None]]
    ) -> None:
        self._database = database
        self._passwords = passwords
        self._changed = changed
        self._guesses = Backoff(free=5, longest_seconds=30)

    async def create(self, who: Principal, new: NewUser) -> RowMapping:
        """Make a user.  Raises ``errors.BadRequest``, and ``errors.Conflict`` for a taken name."""
        need_server_admin(who)
        check_name("name", new.name)
        check_text("display", new.display)
        check_text("email", new.email)
        hashed = None if new.password is None else await self._passwords.hash(new.password)

        def write(connection: Connection) -> RowMapping:
            if queries.name_was_given(connection, new.name):
                raise errors.Conflict(
                    f"the name {new.name!r} is taken, or was: names are not given twice, since "
                    "jobs and the audit refer to them"
                )
            queries.insert_user(connection, user_values(new, hashed))
            note(connection, who, "create user", new.name, server_admin=new.server_admin)
            return find(connection, new.name)

        return await self._write(write)

    async def list(self, who: Principal) -> Sequence[RowMapping]:
        """Return all users, by name."""
        need_server_admin(who)
        return await self._database.read(queries.all_users)

    async def show(self, who: Principal, name: str) -> tuple[RowMapping, Sequence[RowMapping]]:
        """Return a user and their memberships; everybody may look at themselves."""
        if who.owner != name:
            need_server_admin(who)

        def read(connection: Connection) -> tuple[RowMapping, Sequence[RowMapping]]:
            user = find(connection, name)
            return user, queries.memberships_of(connection, user["serial"])

        return await self._database.read(read)

    async def set_disabled(self, who: Principal, name: str, disabled: bool) -> RowMapping:
        """Keep a user out, at once, or let them in again.  Their jobs go on."""
        need_server_admin(who)
        if disabled and who.owner == name:
            raise errors.Conflict("you would keep yourself out; let another server admin do it")

        def write(connection: Connection) -> RowMapping:
            user = find(connection, name)
            queries.update_user(connection, user["serial"], {"disabled": disabled})
            note(connection, who, "disable user" if disabled else "enable user", name)
            return find(connection, name)

        return await self._write(write)

    async def remove(self, who: Principal, name: str) -> None:
        """Remove a user for good.  Their jobs stay; their name is never given again.

        Raises ``errors.Conflict`` while they are the last admin of a project.
        """
        need_server_admin(who)
        if who.owner == name:
            raise errors.Conflict("you would remove yourself; let another server admin do it")

        def write(connection: Connection) -> None:
            user = find(connection, name)
            for membership in queries.memberships_of(connection, user["serial"]):
                keep_an_admin(connection, membership)
            now = time.time_ns()
            queries.delete_memberships(connection, user["serial"])
            queries.revoke_all(connection, user["serial"], now, kinds=(SESSION, TOKEN, BROWSER))
            gone = {"removed_ns": now, "disabled": True, "server_admin": False}
            nothing = {"password_hash": None, "oidc_issuer": None, "oidc_subject": None}
            queries.update_user(
                connection, user["serial"], {**gone, **nothing, "display": "", "email": ""}
            )
            note(connection, who, "remove user", name)

        await self._write(write)

    async def set_password(
        self, who: Principal, name: str, password: str, current: str | None = None
    ) -> None:
        """Set a user's password and end their sessions, but for the one that asks.

        A server admin sets anybody's; one's own takes the current one.  Raises
        ``errors.NotAllowed``, ``errors.BadRequest``, and ``errors.TooManyRequests`` to who guesses.
        """
        if who.owner == name:
            need_full_scope(who)
            user = await self._database.read(lambda connection: find(connection, name))
            if user["password_hash"] is not None:
                self._guesses.check(name)
                self._guesses.failed(name)  # before it is known, as when somebody signs in
                if not await self._passwords.matches(user["password_hash"], current or ""):
                    raise errors.NotAllowed("current: this is not your password")
                self._guesses.succeeded(name)
            elif not who.may_administer():
                raise errors.NotAllowed("you have no password yet; a server admin may set one")
        else:
            need_server_admin(who)
        hashed = await self._passwords.hash(password)

        def write(connection: Connection) -> None:
            user = find(connection, name)
            queries.update_user(connection, user["serial"], {"password_hash": hashed})
            queries.revoke_all(
                connection,
                user["serial"],
                time.time_ns(),
                kinds=(SESSION, BROWSER),
                spared=who.credential,
            )
            note(connection, who, "set password", name)

        await self._write(write)

    async def _write(self, work: Work[T]) -> T:
        result = await self._database.write(work)
        await self._changed()
        return result


def user_values(new: NewUser, password_hash: str | None) -> dict[str, object]:
    """Return the row of a new user."""
    return {
        "name": new.name,
        "display": new.display,
        "email": new.email,
        "password_hash": password_hash,
        "server_admin": new.server_admin,
        "disabled": False,
        "created_ns": time.time_ns(),
    }


def find(connection: Connection, name: str) -> RowMapping:
    """Return the user of this name.  Raises ``errors.NotFound``."""
    # What cannot be a name is none; a database might not even take it (NUL, half a surrogate pair).
    user = queries.find_user(connection, name) if can_be_name(name) else None
    if user is None:
        raise errors.NotFound(f"there is no user {name!r}; see: updraft user list")
    return user


def keep_an_admin(connection: Connection, membership: RowMapping) -> None:
    """Raise ``errors.Conflict`` when nobody would be left to administer the project."""
    if membership["role"] != Role.ADMIN:
        return
    others = queries.members_of(connection, membership["project_serial"])
    if sum(each["role"] == Role.ADMIN for each in others) <= 1:
        raise errors.Conflict(
            f"{membership['user_name']} is the last admin of project "
            f"{membership['project_name']}; make another one first: updraft project members "
            f"{membership['project_name']} --add NAME --role admin"
        )


def can_be_name(name: str) -> bool:
    """Whether a user or a project could have this name."""
    return _NAME.fullmatch(name) is not None


def check_name(field: str, name: str) -> None:
    """Raise ``errors.BadRequest`` for what cannot be a name of a user or a project."""
    if not can_be_name(name):
        raise errors.BadRequest(
            f"{field}: {name!r} cannot be a name; small letters, digits, '.', '_' and '-' can, at "
            "most 63, beginning with a letter or a digit"
        )


def check_text(field: str, text: str) -> None:
    """Raise ``errors.BadRequest`` for text that cannot be shown on one line."""
    if len(text) > _MAX_TEXT or not text.isprintable():
        raise errors.BadRequest(
            f"{field}: text must be printable and at most {_MAX_TEXT} characters long"
        )
