"""Who asks, and what they may do: principals, roles in a project, scopes of a credential."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

DEFAULT_PROJECT = "default"


class Role(StrEnum):
    """What a user is in a project; each may do all that the ones before it may."""

    VIEWER = "viewer"
    """Looks at the project's jobs and what they wrote."""
    MEMBER = "member"
    """Submits jobs, and ends and changes their own."""
    ADMIN = "admin"
    """Ends and changes every job of the project, and decides who is in it."""

    def includes(self, other: Role) -> bool:
        """Whether this role may do all that ``other`` may."""
        order = list(Role)
        return order.index(self) >= order.index(other)


class Scope(StrEnum):
    """What a credential may be used for, at most; each includes the ones before it."""

    READ = "read"
    RUN = "run"
    ADMIN = "admin"

    def includes(self, other: Scope) -> bool:
        """Whether this scope allows all that ``other`` does."""
        order = list(Scope)
        return order.index(self) >= order.index(other)


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks: every query and every write is scoped by it.

    On a unix socket the owner is the socket's peer (``uid:1000``), who owns the server and may do
    everything; elsewhere it is the name of the user who signed in.
    """

    owner: str
    project: str = DEFAULT_PROJECT
    role: Role = Role.ADMIN
    """In the project."""
    server_admin: bool = False
    """Whether they may administer the server itself: users, projects, pools, runners."""
    scope: Scope = Scope.ADMIN
    member: bool = True
    """Whether they are in the project; a server admin reaches others too, and that is audited."""
    confined: bool = False
    """Whether their credential is good for this project only."""
    task: str = ""
    """The job whose task asks: what it submits are that job's children."""
    attempt: int = field(default=0, compare=False)
    """The serial of that job's attempt, or crew, which asks."""
    descendants_only: bool = False
    """Whether it ends and changes only jobs that came from that one, by whatever rights."""
    credential: str = field(default="", compare=False)
    """The id of their credential; empty on a unix socket, where there is none."""
    peer: str = field(default="", compare=False)
    """Where they ask from: an address; empty on a unix socket."""

    def may_view(self) -> bool:
        """Whether they may look at the project's jobs."""
        return self.scope.includes(Scope.READ)

    def may_run(self) -> bool:
        """Whether they may submit jobs to the project."""
        return self.scope.includes(Scope.RUN) and self.role.includes(Role.MEMBER)

    def may_change(self, owner: str) -> bool:
        """Whether they may end and change a job of the project's that is ``owner``'s."""
        return self.may_run() and (self.owner == owner or self.role.includes(Role.ADMIN))

    def may_administer(self) -> bool:
        """Whether they may administer the server."""
        return self.server_admin and not self.confined and self.scope.includes(Scope.ADMIN)

    def may_administer_project(self) -> bool:
        """Whether they may administer the project that they ask about."""
        return self.role.includes(Role.ADMIN) and self.scope.includes(Scope.ADMIN)
