"""Users and tokens over HTTP, and the audit."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query

from updraft.server.api import presenting_access as presenting
from updraft.server.api.requests import UserName, Who
from updraft.server.services.access import Access
from updraft.server.services.accounts import NewUser
from updraft.server.services.audit import MAX_PAGE
from updraft.server.services.sign_in import NewToken
from updraft.wire import access_schemas as schemas

TokenId = Annotated[str, Path(description="a token's id, which is the part after `updraft_user_`")]


def make_router(access: Access) -> APIRouter:
    """Return the routes of users, tokens and the audit."""
    router = APIRouter()
    accounts, tokens = access.accounts, access.sign_in

    @router.get("/users", tags=["users"], summary="List users")
    async def list_users(who: Who) -> schemas.Users:
        return schemas.Users(users=[presenting.user(row) for row in await accounts.list(who)])

    @router.post("/users", tags=["users"], status_code=201, summary="Make a user")
    async def create_user(who: Who, body: schemas.UserRequest) -> schemas.UserSummary:
        """For server admins, as all that changes users."""
        new = NewUser(body.name, body.display, body.email, body.password, body.server_admin)
        return presenting.user(await accounts.create(who, new))

    @router.get("/users/{user}", tags=["users"], summary="Show a user")
    async def show_user(who: Who, user: UserName) -> schemas.User:
        """Everybody may look at themselves."""
        return presenting.whole_user(*await accounts.show(who, user))

    @router.delete("/users/{user}", tags=["users"], status_code=204, summary="Remove a user")
    async def remove_user(who: Who, user: UserName) -> None:
        """For good. Jobs stay; the name is never given again."""
        await accounts.remove(who, user)

    @router.post("/users/{user}/disable", tags=["users"], summary="Keep a user out, at once")
    async def disable_user(who: Who, user: UserName) -> schemas.UserSummary:
        """Their jobs go on."""
        return presenting.user(await accounts.set_disabled(who, user, True))

    @router.post("/users/{user}/enable", tags=["users"], summary="Let a user in again")
    async def enable_user(who: Who, user: UserName) -> schemas.UserSummary:
        return presenting.user(await accounts.set_disabled(who, user, False))

    @router.put("/users/{user}/password", tags=["users"], status_code=204, summary="Set a password")
    async def set_password(who: Who, user: UserName, body: schemas.PasswordRequest) -> None:
        """Ends the user's sessions, but for the one that asks. One's own takes the current one."""
        await accounts.set_password(who, user, body.password, body.current)

    @router.get("/tokens", tags=["tokens"], summary="List tokens and sessions")
    async def list_tokens(
        who: Who, user: Annotated[str | None, Query(description="whose; for server admins")] = None
    ) -> schemas.Tokens:
        rows = await tokens.list(who, user)
        return schemas.Tokens(tokens=[presenting.token(row) for row in rows])

    @router.post("/tokens", tags=["tokens"], status_code=201, summary="Make a token")
    async def create_token(who: Who, body: schemas.TokenRequest) -> schemas.NewToken:
        """Its text is in this answer and nowhere else."""
        new = NewToken(body.name, body.scope, body.expires_seconds, body.project, body.user)
        row, text = await tokens.create_token(who, new)
        return schemas.NewToken(**presenting.token(row).model_dump(), token=text)

    @router.delete(
        "/tokens/{token}", tags=["tokens"], status_code=204, summary="Revoke a token, at once"
    )
    async def revoke_token(who: Who, token: TokenId) -> None:
        """A session ends."""
        await tokens.revoke(who, token)

    @router.get("/audit", tags=["audit"], summary="Show what was done, newest first")
    async def list_audit(
        who: Who,
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 50,
        before: Annotated[
            int | None, Query(ge=0, lt=1 << 62, description="`next_before` of the page before")
        ] = None,
        user: Annotated[str | None, Query(description="only what they did")] = None,
        action: Annotated[str | None, Query(description="only this")] = None,
    ) -> schemas.AuditPage:
        """For server admins."""
        rows = await access.audit.list(who, limit=limit, before=before, user=user, action=action)
        return schemas.AuditPage(
            entries=[presenting.audit_entry(row) for row in rows],
            next_before=rows[-1]["serial"] if len(rows) == limit else None,
        )

    return router
