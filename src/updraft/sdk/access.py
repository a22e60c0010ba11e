"""Users, tokens, projects and the audit: the part of the client that administers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol
from urllib.parse import quote

from updraft.sdk.answers import read
from updraft.wire import access_schemas, schemas

_PAGE = 200


Params = dict[str, str | int | float | bool | Sequence[str]]


class Ask(Protocol):
    """Sends a request and returns the answer's body, or raises the error that it is."""

    def __call__(
        self,
        method: str,
        path: str,
        *,
        params: Params | None = None,
        body: schemas.Request | None = None,
        again: bool = True,
    ) -> bytes: ...


class Access:
    """Requests about who may do what.  Every method raises ``errors.UpdraftError``."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    def me(self) -> access_schemas.Me:
        """Return who asks."""
        return read(access_schemas.Me, self._ask("GET", "/me"))

    def sign_out(self) -> None:
        """End the session that asks."""
        self._ask("POST", "/sign-out")

    # -- users

    def users(self) -> list[access_schemas.UserSummary]:
        """Return all users, by name."""
        return read(access_schemas.Users, self._ask("GET", "/users")).users

    def user(self, name: str) -> access_schemas.User:
        """Return a user with their projects."""
        return read(access_schemas.User, self._ask("GET", _path("users", name)))

    def add_user(self, request: access_schemas.UserRequest) -> access_schemas.UserSummary:
        """Make a user."""
        answer = self._ask("POST", "/users", body=request, again=False)
        return read(access_schemas.UserSummary, answer)

    def set_disabled(self, name: str, disabled: bool) -> access_schemas.UserSummary:
        """Keep a user out, or let them in again."""
        path = _path("users", name, "disable" if disabled else "enable")
        return read(access_schemas.UserSummary, self._ask("POST", path))

    def remove_user(self, name: str) -> None:
        """Remove a user for good."""
        self._ask("DELETE", _path("users", name), again=False)

    def set_password(self, name: str, request: access_schemas.PasswordRequest) -> None:
        """Set a user's password."""
        self._ask("PUT", _path("users", name, "password"), body=request)

    # -- tokens

    def tokens(self, user: str | None = None) -> list[access_schemas.Token]:
        """Return a user's tokens and sessions, oldest first; None: one's own."""
        params: Params = {} if user is None else {"user": user}
        return read(access_schemas.Tokens, self._ask("GET", "/tokens", params=params)).tokens

    def create_token(self, request: access_schemas.TokenRequest) -> access_schemas.NewToken:
        """Make a token."""
        answer = self._ask("POST", "/tokens", body=request, again=False)
        return read(access_schemas.NewToken, answer)

    def revoke_token(self, token_id: str) -> None:
        """Revoke a token, or end a session."""
        self._ask("DELETE", _path("tokens", token_id), again=False)

    # -- projects

    def projects(self) -> list[access_schemas.Project]:
        """Return the projects that the caller may see, by name."""
        return read(access_schemas.Projects, self._ask("GET", "/projects")).projects

    def project(self, name: str) -> access_schemas.Project:
        """Return a project."""
        return read(access_schemas.Project, self._ask("GET", _path("projects", name)))

    def create_project(self, name: str) -> access_schemas.Project:
        """Make a project."""
        body = access_schemas.ProjectRequest(name=name)
        answer = self._ask("POST", "/projects", body=body, again=False)
        return read(access_schemas.Project, answer)

    def set_archived(self, name: str, archived: bool) -> access_schemas.Project:
        """Let a project take no more jobs, or some again."""
        path = _path("projects", name, "archive" if archived else "unarchive")
        return read(access_schemas.Project, self._ask("POST", path))

    def set_limits(
        self, name: str, limits: access_schemas.LimitsRequest, user: str | None = None
    ) -> access_schemas.Limits:
        """Replace the limits of a project, or of a user in it; return them."""
        if user is None:
            answer = self._ask("PUT", _path("projects", name, "limits"), body=limits)
            return read(access_schemas.Project, answer).limits
        path = _path("projects", name, "members", user, "limits")
        return read(access_schemas.Member, self._ask("PUT", path, body=limits)).limits

    def members(self, name: str) -> list[access_schemas.Member]:
        """Return who is in a project, by name."""
        answer = self._ask("GET", _path("projects", name, "members"))
        return read(access_schemas.Members, answer).members

    def set_member(
        self, name: str, user: str, request: access_schemas.MemberRequest
    ) -> access_schemas.Member:
        """Put a user into a project, or give them another role."""
        path = _path("projects", name, "members", user)
        return read(access_schemas.Member, self._ask("PUT", path, body=request))

    def remove_member(self, name: str, user: str) -> None:
        """Take a user out of a project."""
        self._ask("DELETE", _path("projects", name, "members", user), again=False)

    # -- the audit

    def audit(
        self, *, user: str | None = None, action: str | None = None, limit: int | None = None
    ) -> Iterator[access_schemas.AuditEntry]:
        """Yield what was done, newest first; at most ``limit``."""
        params: Params = {}
        if user is not None:
            params["user"] = user
        if action is not None:
            params["action"] = action
        left = limit
        while left is None or left > 0:
            params["limit"] = _PAGE if left is None else min(left, _PAGE)
            page = read(access_schemas.AuditPage, self._ask("GET", "/audit", params=params))
            yield from page.entries
            if page.next_before is None:
                return
            params["before"] = page.next_before
            left = None if left is None else left - len(page.entries)


def _path(*parts: str) -> str:
    return "/" + "/".join(quote(part, safe="") or "%20" for part in parts)
