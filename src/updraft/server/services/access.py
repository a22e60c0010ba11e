"""Access: users, projects, credentials and the audit, put together for those who ask."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from updraft import errors
from updraft.model.access import Principal, Role
from updraft.model.limits import DefaultLimits, Limits
from updraft.server.auth.passwords import Passwords
from updraft.server.services.accounts import Accounts
from updraft.server.services.admission import Admission
from updraft.server.services.audit import Audit
from updraft.server.services.devices import Devices
from updraft.server.services.live_jobs import LiveJobs
from updraft.server.services.oidc import Oidc, OidcSettings
from updraft.server.services.projects import Projects, no_project
from updraft.server.services.sign_in import SessionLimits, SignIn
from updraft.server.services.strangers import Strangers
from updraft.server.services.task_access import TaskAccess, is_of_task
from updraft.store.database import Database

_PER_SECOND = 500.0
"""As ``server.requests_per_second`` has it."""


class Visitor(Protocol):
    """What stays open for somebody: a connection, an answer that goes on."""

    who: Principal

    def renewed(self, who: Principal) -> None:
        """This is who they are by now.

        Raises ``errors.UpdraftError`` when that does not suffice for what is open.
        """

    def turn_out(self, error: errors.UpdraftError) -> None:
        """They may not have it open any more: end it."""


class Access:
    """Who may do what.  ``load`` before use, ``close`` before the database."""

    def __init__(
        self,
        database: Database,
        sessions: SessionLimits | None = None,
        oidc: OidcSettings | None = None,
        limits: DefaultLimits | None = None,
    ) -> None:
        self.when_changed: Callable[[], None] = lambda: None
        """Called once a change is stored: limits may have been raised."""
        self.visitors: set[Visitor] = set()
        """All that is open, to be looked at again when access changes."""
        self.strangers = Strangers(_PER_SECOND)
        self._changing = asyncio.Lock()
        passwords = Passwords()
        self.sign_in = SignIn(database, passwords, sessions or SessionLimits(), self._changed)
        self.accounts = Accounts(database, passwords, self._changed)
        self.projects = Projects(database, self._changed, limits or DefaultLimits())
        self.admission = Admission(database, self.projects)
        self.audit = Audit(database)
        self.devices = Devices(self.sign_in)
        self.tasks: TaskAccess | None = None
        self.oidc = None if oidc is None else Oidc(database, oidc, self._changed)

    async def load(self) -> None:
        """Read what is held in memory."""
        await self.projects.load()

    async def close(self) -> None:
        """Finish what is being written."""
        await self.sign_in.close()

    async def authenticate(
        self, token: str, project: str | None, peer: str = "", *, need_project: bool = True
    ) -> Principal:
        """Return who holds a token, as ``SignIn.authenticate`` does, and raise as it does.

        Raises ``errors.TooManyRequests``, too, before a token that was never good is looked up.
        """
        if is_of_task(token) and self.tasks is not None:
            try:
                return await self.tasks.authenticate(token, project, peer)
            except errors.TaskEnded:
                self.strangers.count(peer)
                raise
        familiar = self.sign_in.is_familiar(token)
        if not familiar:
            self.strangers.count(peer)
        try:
            who = await self.sign_in.authenticate(token, project, peer, need_project=need_project)
        except (errors.NotSignedIn, errors.NotFound, errors.BadRequest):
            if familiar:
                self.strangers.count(peer)
            raise
        if not familiar:
            self.strangers.forgive(peer)
        return who

    async def renew(self, who: Principal) -> Principal:
        """Return who somebody is by now, as ``SignIn.renew`` does, and raise as it does."""
        if who.descendants_only and self.tasks is not None:
            return await self.tasks.renew(who)
        return await self.sign_in.renew(who)

    async def on_socket(self, known: Principal, token: str) -> Principal:
        """Return who a peer of the owner's socket is; only a task's token changes that.

        Raises ``errors.TaskEnded``.
        """
        if self.tasks is None or not is_of_task(token):
            return known
        return await self.tasks.on_socket(known, token)

    def admit_tasks(self, tasks: TaskAccess, live: LiveJobs) -> None:
        """Let tasks in by their tokens, for as long as their attempts go on."""
        self.tasks = tasks
        live.when_released = self._task_over

    def _task_over(self, serial: int) -> None:
        """What a task's token has opened ends with the attempt."""
        credential = None if self.tasks is None else self.tasks.over(serial)
        if credential is not None:
            for visitor in tuple(self.visitors):
                if visitor.who.credential == credential:
                    visitor.turn_out(errors.TaskEnded())

    def in_project(self, who: Principal, project: str) -> Principal:
        """Return a principal of the unix socket in another project than the one they came in.

        Raises ``errors.NotFound`` when there is none, or it is not theirs.
        """
        if project == who.project:
            return who
        if not who.server_admin or not self.projects.exists(project):
            raise no_project(project)
        role, member = self.projects.role_in(who, project) or (Role.VIEWER, False)
        return replace(who, project=project, role=role, member=member)

    def limits_of(self, project: str, owner: str) -> tuple[Limits, Limits]:
        """Return a project's limits and the owner's in it, from memory: asked on every grant."""
        return self.projects.limits_of(project, owner)

    async def _changed(self) -> None:
        """A change is stored: nothing that was known before counts any more."""
        self.sign_in.forget()
        # One after the other: what was read before another change must not be kept after it.
        async with self._changing:
            await self.projects.load()
            for visitor in tuple(self.visitors):
                await self._look_again(visitor)
        self.when_changed()

    async def _look_again(self, visitor: Visitor) -> None:
        try:
            visitor.renewed(await self.renew(visitor.who))
        except errors.UpdraftError as error:
            visitor.turn_out(error)
