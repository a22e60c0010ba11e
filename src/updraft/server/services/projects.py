"""Projects: who is in them, as what, and their limits.

What scheduling asks on every grant is held in memory, and ``Access`` has it loaded again after each
change of access.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from sqlalchemy import Connection, RowMapping

from updraft import errors
from updraft.model.access import DEFAULT_PROJECT, Principal, Role
from updraft.model.limits import DefaultLimits, Limits
from updraft.server.services import accounts
from updraft.server.services.audit import note
from updraft.server.services.authority import need_full_scope, need_server_admin
from updraft.store import access as queries
from updraft.store.database import Database, Work

T = TypeVar("T")

_MAX_COUNT = (1 << 31) - 1
_MAX_AMOUNT = 1 << 60


@dataclass(frozen=True, slots=True)
class ProjectView:
    """A project as one who may see it sees it."""

    row: RowMapping
    role: Role
    """The caller's."""
    member: bool
    """Whether they are in it, or see it as a server admin."""


@dataclass(slots=True)
class _Known:
    limits: Limits
    archived: bool
    members: dict[str, tuple[Role, Limits]] = field(default_factory=dict)


class Projects:
    """The projects of the server.  ``changed`` is called once a change is stored.

    ``defaults``: the limits of those that have none of their own.
    """

    def __init__(
        self,
        database: Database,
        changed: Callable[[], Awaitable[None]],
        defaults: DefaultLimits,
    ) -> None:
        self.defaults = defaults
        self._database = database
        self._changed = changed
        self._known: dict[str, _Known] = {}

    async def load(self) -> None:
        """Read all projects and memberships into memory."""

        def read(connection: Connection) -> tuple[Sequence[RowMapping], Sequence[RowMapping]]:
            return queries.all_projects(connection), queries.all_members(connection)

        projects, members = await self._database.read(read)
        known = {
            row["name"]: _Known(
                limits_in(row).over(self.defaults.project), row["archived_ns"] is not None
            )
            for row in projects
        }
        for row in members:
            role = Role(row["role"])
            limits = limits_in(row).over(self.defaults.user)
            known[row["project_name"]].members[row["user_name"]] = (role, limits)
        self._known = known

    # -- what scheduling and admission ask

    def limits_of(self, project: str, owner: str) -> tuple[Limits, Limits]:
        """Return the limits that hold for a project, and for the owner in it."""
        known = self._known.get(project)
        if known is None:
            return self.defaults.project, self.defaults.user
        return known.limits, known.members.get(owner, (None, self.defaults.user))[1]

    def is_archived(self, project: str) -> bool:
        """Whether the project takes no more jobs."""
        known = self._known.get(project)
        return known is not None and known.archived

    def exists(self, project: str) -> bool:
        """Whether there is such a project."""
        return project in self._known

    # -- projects

    async def create(self, who: Principal, name: str) -> ProjectView:
        """Make a project; whoever makes it is its first admin, if they are a user."""
        need_server_admin(who)
        accounts.check_name("name", name)

        def write(connection: Connection) -> None:
            if queries.find_project(connection, name) is not None:
                raise errors.Conflict(f"there is a project {name!r} already")
            values = {"name": name, "created_ns": time.time_ns()}
            serial = queries.insert_project(connection, values)
            user = queries.find_user(connection, who.owner)
            if user is not None:
                keys = {"project_serial": serial, "user_serial": user["serial"]}
                queries.insert_member(connection, {**keys, "role": Role.ADMIN})
            note(connection, who, "create project", name)

        await self._write(write)
        return await self.show(who, name)

    async def list(self, who: Principal) -> list[ProjectView]:
        """Return the projects that the caller may see, by name."""
        rows = await self._database.read(queries.all_projects)
        return [view for row in rows if (view := self._view(who, row)) is not None]

    async def show(self, who: Principal, name: str) -> ProjectView:
        """Return a project.  Raises ``errors.NotFound``, also for one that is not the caller's."""
        row = None
        if accounts.can_be_name(name):
            row = await self._database.read(lambda c: queries.find_project(c, name))
        view = None if row is None else self._view(who, row)
        if view is None:
            raise no_project(name)
        return view

    async def set_archived(self, who: Principal, name: str, archived: bool) -> ProjectView:
        """Let a project take no more jobs, or let it take some again."""
        view = await self._administered(who, name)
        if archived and name == DEFAULT_PROJECT:
            raise errors.Conflict(f"project {name} is where jobs go that name none; it stays")
        values = {"archived_ns": time.time_ns() if archived else None}

        def write(connection: Connection) -> None:
            queries.update_project(connection, view.row["serial"], values)
            note(connection, who, "archive project" if archived else "unarchive project", name)

        await self._write(write)
        return await self.show(who, name)

    async def set_limits(self, who: Principal, name: str, limits: Limits) -> ProjectView:
        """Replace a project's limits: a server admin's business, since they share the server."""
        need_server_admin(who)
        view = await self.show(who, name)
        values = _checked(limits)

        def write(connection: Connection) -> None:
            queries.update_project(connection, view.row["serial"], values)
            note(connection, who, "set project limits", name, **values)

        await self._write(write)
        return await self.show(who, name)

    # -- members

    async def members(self, who: Principal, name: str) -> Sequence[RowMapping]:
        """Return who is in a project, by name."""
        view = await self.show(who, name)
        return await self._database.read(
            lambda connection: queries.members_of(connection, view.row["serial"])
        )

    async def set_member(self, who: Principal, name: str, user_name: str, role: Role) -> RowMapping:
        """Put a user into a project, or give a member another role.

        Raises ``errors.Conflict`` when the project would have no admin left.
        """
        view = await self._administered(who, name)

        def write(connection: Connection) -> RowMapping:
            user = accounts.find(connection, user_name)
            keys = {"project_serial": view.row["serial"], "user_serial": user["serial"]}
            found = _member(connection, **keys)
            if found is None:
                queries.insert_member(connection, {**keys, "role": role})
            else:
                if role is not Role.ADMIN:
                    accounts.keep_an_admin(connection, found)
                queries.update_member(connection, **keys, values={"role": role})
            note(connection, who, "set member", user_name, project=name, role=role)
            stored = _member(connection, **keys)
            assert stored is not None  # noqa: S101 - it was just written
            return stored

        return await self._write(write)

    async def remove_member(self, who: Principal, name: str, user_name: str) -> None:
        """Take a user out of a project; their jobs stay.  Raises as ``set_member`` does."""
        view = await self._administered(who, name)

        def write(connection: Connection) -> None:
            found = _named(connection, view, user_name)
            accounts.keep_an_admin(connection, found)
            queries.delete_member(connection, found["project_serial"], found["user_serial"])
            note(connection, who, "remove member", user_name, project=name)

        await self._write(write)

    async def set_member_limits(
        self, who: Principal, name: str, user_name: str, limits: Limits
    ) -> RowMapping:
        """Replace a member's limits in the project."""
        view = await self._administered(who, name)
        values = _checked(limits)

        def write(connection: Connection) -> RowMapping:
            found = _named(connection, view, user_name)
            queries.update_member(connection, found["project_serial"], found["user_serial"], values)
            note(connection, who, "set member limits", user_name, project=name, **values)
            return _named(connection, view, user_name)

        return await self._write(write)

    # -- who may

    def role_in(self, who: Principal, name: str) -> tuple[Role, bool] | None:
        """Return a principal's role in a project, and whether they are in it; None: not theirs."""
        if who.confined and who.project != name:
            return None
        known = self._known.get(name)
        mine = None if known is None else known.members.get(who.owner)
        if who.server_admin:
            return Role.ADMIN, mine is not None
        return None if mine is None else (mine[0], True)

    def _view(self, who: Principal, row: RowMapping) -> ProjectView | None:
        found = self.role_in(who, row["name"])
        return None if found is None else ProjectView(row, *found)

    async def _administered(self, who: Principal, name: str) -> ProjectView:
        view = await self.show(who, name)
        need_full_scope(who)
        if view.role is not Role.ADMIN:
            raise errors.NotAllowed(
                f"you are a {view.role} of project {name}; ask one of its admins"
            )
        return view

    async def _write(self, work: Work[T]) -> T:
        result = await self._database.write(work)
        await self._changed()
        return result


def no_project(name: str) -> errors.NotFound:
    """Return the one answer for a project that is not there, or not the caller's."""
    return errors.NotFound(f"there is no project {name!r}; see: updraft project list")


def limits_in(row: RowMapping) -> Limits:
    """Return the limits of their own in a project's or a member's row."""
    return Limits(**{name: row[name] for name in queries.LIMITS})


def _member(connection: Connection, project_serial: int, user_serial: int) -> RowMapping | None:
    rows = queries.members_of(connection, project_serial)
    return next((row for row in rows if row["user_serial"] == user_serial), None)


def _named(connection: Connection, view: ProjectView, user_name: str) -> RowMapping:
    rows = queries.members_of(connection, view.row["serial"])
    found = next((row for row in rows if row["user_name"] == user_name), None)
    if found is None:
        name = view.row["name"]
        raise errors.NotFound(
            f"{user_name!r} is not in project {name}; see who is: updraft project members {name}"
        )
    return found


def _checked(limits: Limits) -> dict[str, Any]:
    values = asdict(limits)
    for name, value in values.items():
        most = _MAX_COUNT if name in ("running_jobs", "gpus") else _MAX_AMOUNT
        if value is not None and not 0 <= value <= most:
            raise errors.BadRequest(f"{name}: a limit is between 0 and {most}, or null for none")
    return values
