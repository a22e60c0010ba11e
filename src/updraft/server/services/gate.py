"""Whom a credential belongs to: a user, or a runner."""

from __future__ import annotations

from typing import Protocol

from updraft.model.access import Principal
from updraft.model.pool import Runner
from updraft.server.auth import credentials
from updraft.server.services.fleet import Fleet


class Users(Protocol):
    """Knows users by their tokens and sessions."""

    async def authenticate(self, token: str, project: str | None, peer: str = "") -> Principal:
        """Return who carries the token.  Raises ``errors.NotSignedIn``, and for the project."""

    async def on_socket(self, known: Principal, token: str) -> Principal:
        """Return who a peer of the owner's socket is.  Raises ``errors.TaskEnded``."""


class Gate:
    """Admits users and runners."""

    def __init__(self, users: Users, fleet: Fleet) -> None:
        self._users = users
        self._fleet = fleet

    async def admit(self, token: str, project: str | None, peer: str) -> Principal | Runner:
        """Return who carries this credential.

        Raises ``errors.NotSignedIn``, and what ``project`` is refused with.
        """
        carried = credentials.parse(token)
        if carried is not None and carried.kind is credentials.Kind.RUNNER:
            return self._fleet.admit(carried)
        return await self._users.authenticate(token, project, peer)

    async def admit_task(self, known: Principal, token: str) -> Principal:
        """Return who a peer of the owner's socket is that carries a task's token.

        Raises ``errors.TaskEnded``.
        """
        return await self._users.on_socket(known, token)
