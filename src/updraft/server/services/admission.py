"""Whether a job may be submitted: the role, the project, and limits that no waiting mends."""

from __future__ import annotations

import time

from updraft import errors
from updraft.model.access import Principal
from updraft.model.job import Resources, Submission
from updraft.model.limits import never_allowed
from updraft.server.services.authority import need_run
from updraft.server.services.projects import Projects
from updraft.storage.segments import DEFAULT_QUOTA_BYTES
from updraft.store import access as queries
from updraft.store.database import Database
from updraft.store.jobs import find_submitted

_COUNTED_SECONDS = 5.0
_MAX_COUNTS = 1000


class Admission:
    """Asked before every submission; without a limit on stored bytes it asks no database."""

    def __init__(self, database: Database, projects: Projects) -> None:
        self._database = database
        self._projects = projects
        self._counts: dict[tuple[str, str | None], tuple[float, int]] = {}
        self.quota_bytes = DEFAULT_QUOTA_BYTES

    async def admit(self, who: Principal, submission: Submission) -> None:
        """Raise ``errors.NotAllowed``, ``errors.BadRequest`` or ``errors.Conflict`` if it may not.

        A limit on stored bytes counts output of jobs that ended, as it was a few seconds ago.  What
        was stored before is that job still: its client only missed the answer.
        """
        need_run(who)
        try:
            await self._check(who, submission.resources)
        except (errors.BadRequest, errors.Conflict):
            known = await self._database.read(
                lambda c: find_submitted(c, who.owner, submission.key, who.project)
            )
            if known is None:
                raise

    async def _check(self, who: Principal, need: Resources) -> None:
        if self._projects.is_archived(who.project):
            raise errors.Conflict(f"project {who.project} is archived and takes no more jobs")
        limits = self._projects.limits_of(who.project, who.owner)
        whose = (f"project {who.project}", f"you in project {who.project}")
        for owner, limit, name in zip((None, who.owner), limits, whose, strict=True):
            problem = never_allowed(limit, need)
            if problem is not None:
                raise errors.BadRequest(
                    f"this job alone is above a limit of {name}, with {problem} used; ask for less"
                )
            if limit.stored_bytes is None:
                continue
            stored = await self._stored(who.project, owner)
            if stored >= limit.stored_bytes:
                raise errors.Conflict(
                    f"{name}: {stored >> 20} of {limit.stored_bytes >> 20} MiB of output are "
                    "stored; wait until retention removes some, or have the limit raised: "
                    "updraft project limits"
                )

    async def _stored(self, project: str, owner: str | None) -> int:
        now = time.monotonic()
        counted, count = self._counts.get((project, owner), (now - _COUNTED_SECONDS, 0))
        if now - counted < _COUNTED_SECONDS:
            return count
        count = await self._database.read(
            lambda c: queries.stored_bytes(c, project, owner, self.quota_bytes)
        )
        if len(self._counts) >= _MAX_COUNTS:
            self._counts.clear()
        self._counts[project, owner] = (now, count)
        return count
