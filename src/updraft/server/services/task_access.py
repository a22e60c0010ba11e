"""Who a task is that asks by its token: its job's owner, in its job's project, and no more.

A token is good while its attempt is the recognised one of its job.  What may be done with it is
what the owner may do by now, at most as a member: look at the project, run jobs there, which are
the job's children, and end and change those that came from it.
"""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy import Connection

from updraft import errors
from updraft.model.access import Principal, Role, Scope
from updraft.server.auth import task_tokens
from updraft.server.auth.environment_keys import EnvironmentKeys
from updraft.server.services.live import LiveJob
from updraft.server.services.live_jobs import LiveJobs
from updraft.server.services.projects import no_project
from updraft.store import access as queries
from updraft.store.database import Database

_KERNEL_KNOWN = "uid:"
"""How the owners of unix sockets begin, who are no users of the server; no user's name does."""


def is_of_task(token: str) -> bool:
    """Whether this is, or claims to be, a task's token."""
    return token.startswith(task_tokens.PREFIX)


def bearer_of(job: LiveJob, serial: int) -> task_tokens.Bearer | None:
    """Return what a task's token is made of; None where its job's key is gone.

    ``serial``: its attempt's, or for all tasks of one crew the crew's.
    """
    if job.key_slot is None:
        return None
    return task_tokens.Bearer(job.id, serial, job.owner, job.project, job.key_slot)


class TaskAccess:
    """Tells whose task carries a token."""

    def __init__(self, database: Database, keys: EnvironmentKeys, live: LiveJobs) -> None:
        self._database = database
        self._keys = keys
        self._live = live
        self._seen: set[int] = set()
        """Attempts that have shown their token, and are not over."""

    def check(self, token: str) -> tuple[LiveJob, int]:
        """Return the job whose recognised attempt carries this token, and that one's serial.

        Raises ``errors.TaskEnded`` for every other, whether or not it ever was good.
        """
        named = task_tokens.names(token)
        job = None if named is None else self._live.find(named[0])
        if named is None or job is None or not _is_recognised(job, named[1]):
            raise errors.TaskEnded
        bearer = bearer_of(job, named[1])
        if bearer is None or not task_tokens.matches(token, self._keys, bearer):
            raise errors.TaskEnded
        return job, named[1]

    async def authenticate(self, token: str, project: str | None, peer: str) -> Principal:
        """Return who carries the token.

        Raises ``errors.TaskEnded``, and ``errors.NotFound`` for another project than its job's.
        """
        return await self._principal(*self.check(token), project, peer)

    async def on_socket(self, known: Principal, token: str) -> Principal:
        """Return who a peer of the owner's socket is that carries a token too.

        The owner's own task has the owner's rights, which it would have without a token; another's,
        in the server's own pool, has no more than anywhere else.
        """
        job, serial = self.check(token)
        if job.owner != known.owner:
            return await self._principal(job, serial, None, "")
        return replace(known, project=job.project, task=job.id, attempt=serial)

    async def renew(self, who: Principal) -> Principal:
        """Return who a task is by now, whose token was seen.  Raises as ``authenticate`` does."""
        job = self._live.find(who.task)
        if job is None or not _is_recognised(job, who.attempt):
            raise errors.TaskEnded
        return await self._principal(job, who.attempt, None, who.peer)

    def over(self, serial: int) -> str | None:
        """An attempt, or crew, is over; return its credential if it was ever shown."""
        if serial not in self._seen:
            return None
        self._seen.discard(serial)
        return _credential(serial)

    async def _principal(
        self, job: LiveJob, serial: int, project: str | None, peer: str
    ) -> Principal:
        if project not in (None, job.project):
            raise no_project(project)
        role, member = Role.MEMBER, True
        if not job.owner.startswith(_KERNEL_KNOWN):
            role, member = await self._database.read(lambda c: _role(c, job.owner, job.project))
        if not _is_recognised(job, serial):  # it ended while we looked
            raise errors.TaskEnded
        self._seen.add(serial)
        return Principal(
            owner=job.owner,
            project=job.project,
            role=role,
            scope=Scope.RUN,
            member=member,
            confined=True,
            task=job.id,
            attempt=serial,
            descendants_only=True,
            credential=_credential(serial),
            peer=peer,
        )


def _role(connection: Connection, owner: str, project: str) -> tuple[Role, bool]:
    """Return an owner's role in a project, a member's at most, and whether they are in it.

    Raises ``errors.NotSignedIn`` and ``errors.NotFound`` where they are not let in any more.
    """
    user = queries.find_user(connection, owner)
    if user is None or user["disabled"]:
        raise errors.NotSignedIn(f"{owner}, whose job this is, has no access any more")
    mine = {
        each["project_name"]: Role(each["role"])
        for each in queries.memberships_of(connection, user["serial"])
    }
    role = Role.ADMIN if user["server_admin"] else mine.get(project)
    if role is None:
        raise no_project(project)
    return (Role.MEMBER if role.includes(Role.MEMBER) else role), project in mine


def _is_recognised(job: LiveJob, serial: int) -> bool:
    """Whether this is a job's one attempt, or one of its crews."""
    if job.array is not None:
        return serial in job.array.crews
    return job.attempt is not None and job.attempt.serial == serial


def _credential(serial: int) -> str:
    """Return what an attempt's token is known by: no stored credential has such an id."""
    return f"task-{serial}"
