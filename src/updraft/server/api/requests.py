"""What several routers take from a request."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Path, Request

from updraft.model.access import Principal


def _principal(request: Request) -> Principal:
    who = request.scope["principal"]
    assert isinstance(who, Principal)  # noqa: S101 - put there by whoever accepted the connection
    return who


Who = Annotated[Principal, Depends(_principal)]
"""Who asks."""

JobId = Annotated[str, Path(description="a job's id, or the beginning of one that is its alone")]
