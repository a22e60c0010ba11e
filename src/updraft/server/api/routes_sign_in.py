"""Signing in over HTTP, and who one is."""

from __future__ import annotations

from fastapi import APIRouter, Request

from updraft.server.api import presenting_access as presenting
from updraft.server.api.requests import Who, peer_of
from updraft.server.services.access import Access
from updraft.wire import access_schemas as schemas


def make_router(access: Access) -> APIRouter:
    """Return the routes of signing in."""
    router = APIRouter(tags=["sign-in"])

    @router.post("/sign-in", status_code=201, summary="Begin a session with a password")
    async def sign_in(request: Request, body: schemas.SignInRequest) -> schemas.SignedIn:
        """No credentials are needed. After several failures it has to wait (429)."""
        made = await access.sign_in.with_password(
            body.name, body.password, peer=peer_of(request), client=body.client
        )
        return presenting.signed_in(made)

    @router.post("/sign-out", status_code=204, summary="End the session that asks")
    async def sign_out(who: Who) -> None:
        """A token that asks revokes itself."""
        if who.credential:
            await access.sign_in.revoke(who, who.credential)

    @router.post("/device", status_code=201, summary="Ask to be signed in by a browser")
    async def device(request: Request, body: schemas.DeviceRequest) -> schemas.DeviceCode:
        """As RFC 8628 has it: the user opens the page, signs in, and confirms the code."""
        asked = access.devices.ask(body.client, peer_of(request))
        return schemas.DeviceCode(
            device_code=asked.device_code,
            user_code=asked.user_code,
            path=f"/login?code={asked.user_code}",
            expires_seconds=asked.expires_seconds,
            interval_seconds=asked.interval_seconds,
        )

    @router.post("/device/token", summary="Ask whether the user has confirmed")
    async def device_token(
        request: Request, body: schemas.DeviceTokenRequest
    ) -> schemas.DeviceToken:
        """The session is in the first answer that says `done`, and in no other."""
        status, made, interval = await access.devices.poll(body.device_code, peer_of(request))
        return schemas.DeviceToken(
            status=status.value,
            interval_seconds=interval,
            signed_in=None if made is None else presenting.signed_in(made),
        )

    @router.get("/me", summary="Show who asks, and in which project")
    async def me(who: Who) -> schemas.Me:
        projects = await access.projects.list(who)
        return schemas.Me(
            name=who.owner,
            project=who.project or None,
            role=who.role if who.project else None,
            scope=who.scope,
            server_admin=who.server_admin,
            projects=[
                schemas.Membership(project=each.row["name"], role=each.role)
                for each in projects
                if each.member
            ],
        )

    return router
