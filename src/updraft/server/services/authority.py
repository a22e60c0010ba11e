"""What a principal may do, as checks that raise ``errors.NotAllowed`` with the reason."""

from __future__ import annotations

from collections.abc import Collection

from updraft import errors
from updraft.model.access import Principal, Role, Scope


def need_server_admin(who: Principal) -> None:
    """Let server admins pass."""
    if who.may_administer():
        return
    if who.server_admin:
        raise errors.NotAllowed(
            "your token is not good for administering the server; sign in: updraft login"
        )
    raise errors.NotAllowed(f"only a server admin may do this, and {who.owner} is none; ask one")


def need_full_scope(who: Principal) -> None:
    """Let sessions and tokens of the scope ``admin`` pass."""
    if not who.scope.includes(Scope.ADMIN):
        raise errors.NotAllowed(
            f"your token's scope is {who.scope}, and this needs admin; sign in: updraft login"
        )


def need_run(who: Principal) -> None:
    """Let those pass who may submit jobs to their project."""
    if who.may_run():
        return
    if not who.role.includes(Role.MEMBER):
        raise errors.NotAllowed(
            f"you are a {who.role} of project {who.project}, and only members run jobs; ask one "
            "of its admins"
        )
    raise errors.NotAllowed(f"your token's scope is {who.scope}, and running jobs needs run")


def need_change(
    who: Principal, owner: str, job_id: str, lineage: Collection[str] | None = None
) -> None:
    """Let those pass who may end and change this job of their project.

    ``lineage``: the jobs that it came from, each from the one before; None: that is not known.
    """
    if who.descendants_only and who.task not in (lineage or ()):
        raise errors.NotAllowed(
            f"job {job_id} was not submitted by job {who.task}, whose token this is; a task ends "
            "and changes only jobs that it submitted"
        )
    if who.may_change(owner):
        return
    need_run(who)
    raise errors.NotAllowed(
        f"job {job_id} is {owner}'s; only they and admins of project {who.project} may do this"
    )
