"""Named queries over users, credentials, projects, members and the audit.

Every function takes a connection, so that the caller decides what is one transaction: what changes
access and its entry in the audit are one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, RowMapping, delete, func, select, update

from updraft.store.jobs import kept_bytes
from updraft.store.tables import attempts, audit, credentials, jobs, members, projects, users

Values = dict[str, Any]
LIMITS = ("running_jobs", "cpus_milli", "gpus", "memory_bytes", "stored_bytes")

# -- users


def insert_user(connection: Connection, values: Values) -> int:
    """Store a user and return their serial; a name that was ever given is an ``IntegrityError``."""
    return int(connection.execute(users.insert().returning(users.c.serial), values).scalar_one())


def find_user(connection: Connection, name: str) -> RowMapping | None:
    """Return the user of this name, who was not removed."""
    statement = select(users).where(users.c.name == name, users.c.removed_ns.is_(None))
    return connection.execute(statement).mappings().one_or_none()


def find_linked(connection: Connection, issuer: str, subject: str) -> RowMapping | None:
    """Return the user whom an identity provider knows by ``subject``; also a removed one."""
    statement = select(users).where(users.c.oidc_issuer == issuer, users.c.oidc_subject == subject)
    return connection.execute(statement).mappings().one_or_none()


def find_unlinked(connection: Connection, email: str) -> Sequence[RowMapping]:
    """Return the users with this address, in any case, whom no identity provider knows."""
    statement = select(users).where(
        func.lower(users.c.email) == email.lower(),
        users.c.oidc_subject.is_(None),
        users.c.removed_ns.is_(None),
    )
    return connection.execute(statement).mappings().all()


def all_users(connection: Connection) -> Sequence[RowMapping]:
    """Return the users that were not removed, by name."""
    statement = select(users).where(users.c.removed_ns.is_(None)).order_by(users.c.name)
    return connection.execute(statement).mappings().all()


def update_user(connection: Connection, serial: int, values: Values) -> None:
    """Write ``values`` to a user."""
    connection.execute(update(users).where(users.c.serial == serial).values(**values))


def name_was_given(connection: Connection, name: str) -> bool:
    """Whether a user has, or had, this name."""
    statement = select(users.c.serial).where(users.c.name == name)
    return connection.execute(statement).first() is not None


# -- credentials


def insert_credential(connection: Connection, values: Values) -> None:
    """Store a credential."""
    connection.execute(credentials.insert(), values)


_SHOWN = [each for each in credentials.c if each.name != "digest"]
_USER_SHOWN = [
    users.c.name.label("user_name"),
    users.c.disabled,
    users.c.removed_ns,
    users.c.server_admin,
]


def find_credential(connection: Connection, credential_id: str) -> RowMapping | None:
    """Return a credential with its digest and its user's name and standing."""
    statement = (
        select(credentials, *_USER_SHOWN)
        .join(users, users.c.serial == credentials.c.user_serial)
        .where(credentials.c.id == credential_id)
    )
    return connection.execute(statement).mappings().one_or_none()


def credentials_of(
    connection: Connection, user_serial: int, now_ns: int, kinds: Sequence[str]
) -> Sequence[RowMapping]:
    """Return a user's credentials that are good, oldest first, without their digests."""
    statement = (
        select(*_SHOWN)
        .where(
            credentials.c.user_serial == user_serial,
            credentials.c.kind.in_(kinds),
            credentials.c.revoked_ns.is_(None),
            credentials.c.expires_ns.is_(None) | (credentials.c.expires_ns > now_ns),
        )
        .order_by(credentials.c.serial)
    )
    return connection.execute(statement).mappings().all()


def note_used(connection: Connection, credential_id: str, now_ns: int) -> None:
    """Write down when a credential was last used."""
    statement = update(credentials).where(credentials.c.id == credential_id)
    connection.execute(statement.values(last_used_ns=now_ns))


def revoke_credential(connection: Connection, credential_id: str, now_ns: int) -> bool:
    """Revoke one; False when it was before."""
    statement = update(credentials).where(
        credentials.c.id == credential_id, credentials.c.revoked_ns.is_(None)
    )
    return connection.execute(statement.values(revoked_ns=now_ns)).rowcount == 1


def revoke_all(
    connection: Connection,
    user_serial: int,
    now_ns: int,
    *,
    kinds: Sequence[str],
    spared: str = "",
) -> None:
    """Revoke a user's credentials of these kinds, but for the one with the id ``spared``."""
    statement = update(credentials).where(
        credentials.c.user_serial == user_serial,
        credentials.c.kind.in_(kinds),
        credentials.c.revoked_ns.is_(None),
        credentials.c.id != spared,
    )
    connection.execute(statement.values(revoked_ns=now_ns))


def delete_old_credentials(connection: Connection, before_ns: int) -> int:
    """Delete what expired or was revoked before; return how many there were."""
    statement = delete(credentials).where(
        (credentials.c.expires_ns < before_ns) | (credentials.c.revoked_ns < before_ns)
    )
    return connection.execute(statement).rowcount


# -- projects


def insert_project(connection: Connection, values: Values) -> int:
    """Store a project and return its serial; a name that is taken is an ``IntegrityError``."""
    statement = projects.insert().returning(projects.c.serial)
    return int(connection.execute(statement, values).scalar_one())


def all_projects(connection: Connection) -> Sequence[RowMapping]:
    """Return all projects, by name."""
    return connection.execute(select(projects).order_by(projects.c.name)).mappings().all()


def find_project(connection: Connection, name: str) -> RowMapping | None:
    """Return the project of this name."""
    statement = select(projects).where(projects.c.name == name)
    return connection.execute(statement).mappings().one_or_none()


def update_project(connection: Connection, serial: int, values: Values) -> None:
    """Write ``values`` to a project."""
    connection.execute(update(projects).where(projects.c.serial == serial).values(**values))


# -- members

_MEMBER = [
    *members.c,
    users.c.name.label("user_name"),
    users.c.disabled,
    projects.c.name.label("project_name"),
]
_MEMBERS = (
    select(*_MEMBER)
    .join(users, users.c.serial == members.c.user_serial)
    .join(projects, projects.c.serial == members.c.project_serial)
)


def all_members(connection: Connection) -> Sequence[RowMapping]:
    """Return who is in which project, and their limits there."""
    return connection.execute(_MEMBERS).mappings().all()


def members_of(connection: Connection, project_serial: int) -> Sequence[RowMapping]:
    """Return a project's members, by name."""
    statement = _MEMBERS.where(members.c.project_serial == project_serial).order_by(users.c.name)
    return connection.execute(statement).mappings().all()


def memberships_of(connection: Connection, user_serial: int) -> Sequence[RowMapping]:
    """Return the projects that a user is in, by name."""
    statement = _MEMBERS.where(members.c.user_serial == user_serial).order_by(projects.c.name)
    return connection.execute(statement).mappings().all()


def insert_member(connection: Connection, values: Values) -> None:
    """Put a user into a project."""
    connection.execute(members.insert(), values)


def update_member(
    connection: Connection, project_serial: int, user_serial: int, values: Values
) -> bool:
    """Write ``values`` to a membership; False when there is none."""
    statement = update(members).where(
        members.c.project_serial == project_serial, members.c.user_serial == user_serial
    )
    return connection.execute(statement.values(**values)).rowcount == 1


def delete_member(connection: Connection, project_serial: int, user_serial: int) -> bool:
    """Take a user out of a project; False when they were not in it."""
    statement = delete(members).where(
        members.c.project_serial == project_serial, members.c.user_serial == user_serial
    )
    return connection.execute(statement).rowcount == 1


def delete_memberships(connection: Connection, user_serial: int) -> None:
    """Take a user out of all projects."""
    connection.execute(delete(members).where(members.c.user_serial == user_serial))


def stored_bytes(connection: Connection, quota_bytes: int) -> Sequence[Row[tuple[str, str, int]]]:
    """Return (project, owner, bytes): how much output of whose jobs is kept."""
    statement = (
        select(jobs.c.project, jobs.c.owner, kept_bytes(quota_bytes))
        .join(attempts, attempts.c.job_serial == jobs.c.serial)
        .where(jobs.c.kept)
        .group_by(jobs.c.project, jobs.c.owner)
    )
    return connection.execute(statement).all()


# -- the audit


def insert_audit(connection: Connection, values: Values) -> None:
    """Append an entry."""
    connection.execute(audit.insert(), values)


def find_audit(
    connection: Connection,
    *,
    before: int | None,
    limit: int,
    who: str | None = None,
    action: str | None = None,
) -> Sequence[RowMapping]:
    """Return entries, newest first; only those below serial ``before``."""
    statement = select(audit)
    if before is not None:
        statement = statement.where(audit.c.serial < before)
    if who is not None:
        statement = statement.where(audit.c.who == who)
    if action is not None:
        statement = statement.where(audit.c.action == action)
    statement = statement.order_by(audit.c.serial.desc()).limit(limit)
    return connection.execute(statement).mappings().all()
