"""Whether a job may be submitted: the role, the project, and limits that no waiting mends."""

from __future__ import annotations

from updraft import errors
from updraft.model.access import Principal
from updraft.model.job import Resources, Submission
from updraft.model.limits import never_allowed
from updraft.scheduling.queue import Party
from updraft.server.services.authority import need_run
from updraft.server.services.projects import Projects
from updraft.server.services.stored import StoredOutput
from updraft.store.database import Database
from updraft.store.jobs import find_submitted


class Admission:
    """Asked before every submission; asks no database but to count what is stored, once."""

    def __init__(self, database: Database, projects: Projects) -> None:
        self._database = database
        self._projects = projects
        self.stored = StoredOutput()
        """Kept by whoever ends attempts and removes output."""

    async def admit(self, who: Principal, submission: Submission) -> None:
        """Raise ``errors.NotAllowed``, ``errors.BadRequest`` or ``errors.Conflict`` if it may not.

        A limit on stored bytes counts output of attempts that ended.  What was stored before is
        that job still: its client only missed the answer.
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
        keys: tuple[Party | str, ...] = (who.project, Party(who.project, who.owner))
        for key, limit, name in zip(keys, limits, whose, strict=True):
            problem = never_allowed(limit, need)
            if problem is not None:
                raise errors.BadRequest(
                    f"this job alone is above a limit of {name}, with {problem} used; ask for less"
                )
            if limit.stored_bytes is None:
                continue
            stored = await self.stored.of(self._database, key)
            if stored >= limit.stored_bytes:
                raise errors.Conflict(
                    f"{name}: {stored >> 20} of {limit.stored_bytes >> 20} MiB of output are "
                    "stored; wait until retention removes some, or have the limit raised: "
                    "updraft project limits"
                )
