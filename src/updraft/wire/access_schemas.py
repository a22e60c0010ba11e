"""What travels as JSON about users, tokens, projects and the audit; see ``wire.schemas``."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from updraft.model.access import Role, Scope
from updraft.wire.schemas import Answer, Request

Secret = Annotated[str, Field(max_length=2000)]
Amount = Annotated[int | None, Field(default=None, ge=0, le=1 << 60)]

# -- signing in


class SignInRequest(Request):
    """A name with its password."""

    name: str = Field(max_length=200)
    password: Secret = Field(repr=False)
    client: str = Field(default="", max_length=200, description="what to call this session")


class SignedIn(Answer):
    """A session: `token` goes into the `Authorization` header as `Bearer TOKEN`."""

    token: str = Field(repr=False, description="shown this once")
    user: str
    expires: datetime | None


class DeviceRequest(Request):
    """A program that its user will sign in by a browser."""

    client: str = Field(default="", max_length=200, description="shown to the user; a host's name")


class DeviceCode(Answer):
    """Show the user the code and the page; poll with the device code."""

    device_code: str = Field(repr=False)
    user_code: str
    path: str = Field(description="of the page on this server, with the code in it")
    expires_seconds: float
    interval_seconds: float


class DeviceTokenRequest(Request):
    """Asks whether the user has confirmed."""

    device_code: Secret = Field(repr=False)


class DeviceToken(Answer):
    """The answer so far."""

    status: Literal["pending", "slow_down", "denied", "expired", "done"]
    interval_seconds: float = Field(description="ask again after so long")
    signed_in: SignedIn | None


class Membership(Answer):
    """A project that a user is in."""

    project: str
    role: Role


class Me(Answer):
    """Who asks."""

    name: str
    project: str | None = Field(description="whose jobs are meant; null: name one of several")
    role: Role | None = Field(description="in that project")
    scope: Scope = Field(description="of the credential")
    server_admin: bool
    projects: list[Membership]


# -- users


class UserRequest(Request):
    """A new user."""

    name: str
    display: str = ""
    email: str = ""
    password: Secret | None = Field(default=None, repr=False)
    server_admin: bool = False


class PasswordRequest(Request):
    """A new password; one's own takes the current one."""

    password: Secret = Field(repr=False)
    current: Secret | None = Field(default=None, repr=False)


class UserSummary(Answer):
    """A user, as lists have them."""

    name: str
    display: str
    email: str
    server_admin: bool
    disabled: bool
    password: bool = Field(description="whether they have one")
    oidc: bool = Field(description="whether an identity provider knows them")
    created: datetime


class User(UserSummary):
    """A user with their projects."""

    projects: list[Membership]


class Users(Answer):
    """All users."""

    users: list[UserSummary]


# -- tokens


class TokenRequest(Request):
    """A token to be made."""

    name: str
    scope: Scope = Scope.RUN
    expires_seconds: float | None = Field(default=None, description="null: never")
    project: str | None = Field(default=None, description="good for this one only")
    user: str | None = Field(default=None, description="whose; for server admins only")


class Token(Answer):
    """A token, or a session, without what proves it."""

    id: str
    kind: Literal["token", "session"]
    name: str
    scope: Scope
    project: str | None
    created: datetime
    expires: datetime | None
    last_used: datetime | None = Field(description="to about a minute")


class NewToken(Token):
    """A token that was just made."""

    token: str = Field(repr=False, description="shown this once")


class Tokens(Answer):
    """A user's tokens and sessions."""

    tokens: list[Token]


# -- projects


class Limits(Answer):
    """What holds: at most so much at a time; null: without limit."""

    running_jobs: int | None
    cpus: float | None
    gpus: int | None
    memory_bytes: int | None
    stored_bytes: int | None = Field(description="output of jobs that have ended")
    defaults: list[str] = Field(
        default_factory=list,
        description="which of these hold by `updraft.toml`, since none of its own is set",
    )


class LimitsRequest(Request):
    """All limits; where one is left out, what the server's `updraft.toml` says holds."""

    running_jobs: Amount
    cpus: float | None = Field(default=None, ge=0, le=1e9)
    gpus: Amount
    memory_bytes: Amount
    stored_bytes: Amount


class ProjectRequest(Request):
    """A new project."""

    name: str


class Project(Answer):
    """A project, as the caller sees it."""

    name: str
    created: datetime
    archived: datetime | None = Field(description="since when it takes no more jobs")
    role: Role = Field(description="the caller's")
    member: bool = Field(description="whether the caller is in it, or sees it as a server admin")
    limits: Limits


class Projects(Answer):
    """The projects that the caller may see."""

    projects: list[Project]


class MemberRequest(Request):
    """What a user is in a project."""

    role: Role = Role.MEMBER


class Member(Answer):
    """A user in a project."""

    user: str
    role: Role
    disabled: bool
    limits: Limits


class Members(Answer):
    """Who is in a project."""

    members: list[Member]


# -- the audit


class AuditEntry(Answer):
    """Something that somebody did."""

    serial: int
    at: datetime
    who: str
    action: str
    subject: str
    details: dict[str, Any]
    peer: str = Field(description="from where: an address, or the unix socket")


class AuditPage(Answer):
    """Part of the audit, newest first."""

    entries: list[AuditEntry]
    next_before: int | None = Field(description="`before` of the next page; null at the end")
