"""The audit: who did what to whom, when and from where.  Written with what it is about."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, RowMapping

from updraft import errors
from updraft.model.access import Principal
from updraft.server.services.authority import need_server_admin
from updraft.store import access as queries
from updraft.store.database import Database

MAX_PAGE = 500


def note(connection: Connection, who: Principal, action: str, subject: str, **details: Any) -> None:
    """Append an entry, in the transaction of what it tells."""
    queries.insert_audit(
        connection,
        {
            "at_ns": time.time_ns(),
            "who": who.owner,
            "action": action,
            "subject": subject,
            "details": json.dumps(details),
            "peer": who.peer or "unix socket",
        },
    )


def looks_in(who: Principal) -> bool:
    """Whether they see others' jobs only as a server admin: not as a member, or on the socket."""
    return not who.member or (who.server_admin and not who.credential)


async def note_about_job(
    database: Database, who: Principal, action: str, job_id: str, owner: str
) -> None:
    """Append an entry when somebody does what they may only as an admin."""
    if who.owner == owner and who.member:
        return
    details = {"project": who.project, "owner": owner}
    await database.write(lambda connection: note(connection, who, action, job_id, **details))


class Audit:
    """Reading the audit."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list(
        self,
        who: Principal,
        *,
        limit: int,
        before: int | None = None,
        user: str | None = None,
        action: str | None = None,
    ) -> Sequence[RowMapping]:
        """Return entries, newest first; only those below serial ``before``.

        Raises ``errors.NotAllowed`` for all but server admins.
        """
        need_server_admin(who)
        for name, text in (("user", user), ("action", action)):
            if text is not None and not text.isprintable():
                raise errors.BadRequest(f"{name}: printable text is needed")
        return await self._database.read(
            lambda c: queries.find_audit(c, before=before, limit=limit, who=user, action=action)
        )
