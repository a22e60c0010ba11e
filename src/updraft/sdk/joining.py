"""Asking a server to take this machine as a runner."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

import httpx

from updraft import errors
from updraft.sdk.transport import SocketTransport
from updraft.wire import fleet_schemas, tls
from updraft.wire.schemas import Error

_PINNED = re.compile(r"sha256:[0-9a-f]{64}")


def join(
    url: str, token: str, machine: dict[str, Any], *, fingerprint: str = ""
) -> fleet_schemas.JoinAnswer:
    """Become a runner of the pool that ``token`` is for.

    ``machine``: the fields of ``fleet_schemas.JoinRequest``.  Raises ``errors.UpdraftError``.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("https", "http") or not parts.hostname:
        raise errors.BadRequest(f"{url!r} is no server's URL; write it as https://HOST:PORT")
    if fingerprint and not _PINNED.fullmatch(fingerprint):
        raise errors.BadRequest(
            f"--fingerprint: {fingerprint!r} is none; it is sha256: and 64 hexadecimal digits"
        )
    encrypted = parts.scheme == "https"
    host, port = parts.hostname, parts.port or (443 if encrypted else 80)
    transport = SocketTransport(
        lambda: tls.connect(host, port, encrypted=encrypted, fingerprint=fingerprint)
    )
    request = fleet_schemas.JoinRequest.model_validate(machine)
    with httpx.Client(transport=transport, base_url=url, trust_env=False) as client:
        try:
            answer = client.post(
                "/api/v1/runners/join",
                json=request.model_dump(),
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
