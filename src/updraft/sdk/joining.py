"""Asking a server to take this machine as a runner."""

from __future__ import annotations

from functools import partial
from typing import Any

import httpx

from updraft import errors
from updraft.sdk.targets import parse_url
from updraft.sdk.transport import SocketTransport
from updraft.wire import fleet_schemas, tls
from updraft.wire.schemas import Error

_TIMEOUT_SECONDS = 30.0


def join(
    url: str, token: str, machine: dict[str, Any], *, fingerprint: str = ""
) -> fleet_schemas.JoinAnswer:
    """Become a runner of the pool that ``token`` is for.

    ``machine``: the fields of ``fleet_schemas.JoinRequest``.  ``fingerprint``: as
    ``targets.parse_fingerprint`` returns it, of the one certificate to trust.  Raises
    ``errors.UpdraftError``.
    """
    host, port = parse_url(url)
    dial = partial(
        tls.connect, host, port, fingerprint=fingerprint, silence_seconds=_TIMEOUT_SECONDS
    )
    transport = SocketTransport(dial)
    request = fleet_schemas.JoinRequest.model_validate(machine)
    with httpx.Client(transport=transport, base_url=url, trust_env=False) as client:
        try:
            answer = client.post(
                "/api/v1/runners/join",
                json=request.model_dump(exclude_unset=True),
                headers={"Authorization": f"Bearer {token}"},
            )
        except httpx.TransportError as error:
            raise errors.Unavailable(f"cannot reach {url}: {error}") from error
    if not answer.is_success:
        try:
            said = Error.model_validate_json(answer.content).error
        except ValueError:
            raise errors.UpdraftError(
                f"{url} answered with HTTP {answer.status_code}; is it an Updraft server?"
            ) from None
        raise errors.from_code(said.code, said.message)
    return fleet_schemas.JoinAnswer.model_validate_json(answer.content)
