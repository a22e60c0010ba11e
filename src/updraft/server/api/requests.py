"""What several routers take from a request."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Path, Request

from updraft.model.access import Principal


def _principal(request: Request) -> Principal:
    who = request.scope["principal"]
    assert isinstance(who, Principal)  # noqa: S101 - put there by ``guard``, or the request refused
    return who


Who = Annotated[Principal, Depends(_principal)]
"""Who asks."""


def peer_of(request: Request) -> str:
    """Return the address at the other end; empty on a unix socket."""
    return request.client.host if request.client is not None else ""


JobId = Annotated[str, Path(description="a job's id, or the beginning of one that is its alone")]
UserName = Annotated[str, Path(description="a user's name")]
ProjectName = Annotated[str, Path(description="a project's name")]
