"""Signing in to a server elsewhere: by a browser, a password or a token that one has."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Self, TypeVar

import httpx

from updraft import errors
from updraft.sdk.answers import check, read
from updraft.sdk.targets import parse_url, url_of
from updraft.sdk.transport import SocketTransport
from updraft.wire import access_schemas, schemas, tls

A = TypeVar("A", bound=schemas.Answer)

_TIMEOUT_SECONDS = 30.0


class SigningIn:
    """A way to one server for someone who has no credential there yet."""

    def __init__(self, url: str, fingerprint: str | None = None) -> None:
        """``fingerprint``: of the one certificate to trust; None: the system's authorities."""
        host, port = parse_url(url)
        self._url = url_of(host, port)
        self._fingerprint = fingerprint
        dial = partial(
            tls.connect,
            host,
            port,
            fingerprint=fingerprint or "",
            silence_seconds=_TIMEOUT_SECONDS,
        )
        self._http = httpx.Client(
            base_url=f"{self._url}/api/v1", transport=SocketTransport(dial), trust_env=False
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def with_password(self, name: str, password: str, client: str) -> access_schemas.SignedIn:
        """Begin a session."""
        body = access_schemas.SignInRequest(name=name, password=password, client=client)
        return self._post(access_schemas.SignedIn, "/sign-in", body)

    def with_browser(
        self, client: str, show: Callable[[str, str], None]
    ) -> access_schemas.SignedIn:
        """Begin a session once the user has confirmed the code.

        ``show`` gets the page's address and the code.  Raises ``errors.NotSignedIn`` when it was
        denied, or nobody came in time.
        """
        request = access_schemas.DeviceRequest(client=client)
        asked = self._post(access_schemas.DeviceCode, "/device", request)
        show(self._url + asked.path, asked.user_code)
        pause = asked.interval_seconds
        until = time.monotonic() + asked.expires_seconds
        body = access_schemas.DeviceTokenRequest(device_code=asked.device_code)
        while time.monotonic() < until:
            time.sleep(pause)
            found = self._post(access_schemas.DeviceToken, "/device/token", body)
            if found.signed_in is not None:
                return found.signed_in
            if found.status == "denied":
                raise errors.NotSignedIn("the sign-in was denied in the browser")
            if found.status == "expired":
                break
            pause = found.interval_seconds
        raise errors.NotSignedIn("nobody confirmed the code in time; begin again: updraft login")

    def me(self, token: str, project: str | None) -> access_schemas.Me:
        """Return who holds a token, in a project.  Raises ``errors.NotSignedIn``."""
        headers = {"Authorization": f"Bearer {token}"}
        if project is not None:
            headers["Updraft-Project"] = project
        try:
            answer = self._http.get("/me", headers=headers)
        except httpx.TransportError as error:
            raise _unreachable(self._url, error) from error
        check(answer)
        return read(access_schemas.Me, answer.content)

    def sign_out(self, token: str) -> None:
        """End the session that a token is."""
        headers = {"Authorization": f"Bearer {token}"}
        try:
            check(self._http.post("/sign-out", headers=headers))
        except httpx.TransportError as error:
            raise _unreachable(self._url, error) from error

    def _post(self, kind: type[A], path: str, body: schemas.Request) -> A:
        try:
            answer = self._http.post(path, json=body.model_dump(mode="json"))
        except httpx.TransportError as error:
            raise _unreachable(self._url, error) from error
        check(answer)
        return read(kind, answer.content)


def _unreachable(url: str, error: Exception) -> errors.Unavailable:
    return errors.Unavailable(f"cannot reach {url}: {str(error) or type(error).__name__}")
