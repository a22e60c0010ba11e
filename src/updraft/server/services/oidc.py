"""Signing in with OpenID Connect: authorization code with PKCE, checked by the provider's keys.

What is trusted of an ID token is what the provider signed for us, for this browser and this try:
the signature, the issuer, the audience, the times and the nonce.  A user is found by issuer and
subject.  One who comes for the first time is let in by a verified address or by a group, as
configured.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import re
import secrets
import ssl
import time
from base64 import urlsafe_b64encode
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

from sqlalchemy import Connection, RowMapping

from updraft import errors
from updraft.model.access import Principal, Role
from updraft.server.auth.backoff import network_of
from updraft.server.services import accounts
from updraft.server.services.accounts import NewUser
from updraft.server.services.audit import note
from updraft.store import access as queries
from updraft.store.database import Database

if TYPE_CHECKING:
    from joserfc.jwk import KeySet

_ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA"]
"""Signatures with a key of the provider's: none that is made with our own secret, and not none."""
_PENDING_SECONDS = 600.0
_MAX_PENDING = 1000
_MAX_PENDING_PEER = 50
_KEYS_SECONDS = 3600.0
_KEYS_AGAIN_SECONDS = 60.0
_TIMEOUT_SECONDS = 10.0
"""Without a byte."""
_ANSWER_SECONDS = 20.0
"""For the whole of an answer."""
_LEEWAY_SECONDS = 60
_MAX_BYTES = 1 << 20
_PIECE_BYTES = 1 << 16
_PLAIN = {"Accept-Encoding": "identity"}
"""Little that is compressed may be much."""


@dataclass(frozen=True, slots=True)
class OidcSettings:
    """How to use one identity provider."""

    issuer: str
    """As the provider writes it in its tokens; its configuration is found below it."""
    client_id: str
    client_secret: str = field(repr=False)
    server_url: str
    """Of this server, as browsers reach it: ``https://updraft.example.com``; the provider has to
    know ``/login/oidc/callback`` below it."""
    name: str = "OpenID Connect"
    """On the button."""
    scopes: tuple[str, ...] = ("profile", "email")
    """Besides ``openid``."""
    domains: tuple[str, ...] = ()
    """Whoever has a verified address in one of them may become a user."""
    groups: tuple[str, ...] = ()
    """Whoever is in one of them may become a user."""
    groups_claim: str = "groups"
    name_claim: str = ""
    """What names a new user, and is not theirs to choose; empty: their verified address."""
    project: str | None = None
    """New users become members of it."""
    ca_file: str = ""
    """Certificates to trust besides the system's."""


@dataclass(frozen=True, slots=True)
class _Pending:
    browser: bytes
    network: str
    verifier: str
    nonce: str
    device_code: str
    until: float


class Oidc:
    """Sign-ins by one identity provider.  ``changed`` is called once a user is made or linked."""

    def __init__(
        self, database: Database, settings: OidcSettings, changed: Callable[[], Awaitable[None]]
    ) -> None:
        issuer = urlsplit(settings.issuer)
        local = issuer.scheme == "http" and issuer.hostname in ("127.0.0.1", "::1", "localhost")
        if issuer.scheme != "https" and not local:
            raise errors.BadConfiguration(
                f"oidc.issuer: {settings.issuer!r} is no https:// address, and tokens cannot be "
                "trusted without"
            )
        self._database = database
        self._settings = settings
        self._changed = changed
        self._domains = frozenset(domain.lower() for domain in settings.domains)
        self._trusted = _trusted(settings.ca_file)
        self._pending: dict[str, _Pending] = {}
        self._provider: dict[str, Any] | None = None
        self._keys: KeySet | None = None
        self._keys_at = 0.0

    @property
    def name(self) -> str:
        """What people call the provider."""
        return self._settings.name

    async def begin(self, browser: str, device_code: str, peer: str) -> str:
        """Return the provider's page for this browser, which is known by a secret cookie.

        ``device_code``: the code of the program that is to be signed in, to come back with.
        """
        provider = await self._discover()
        now = time.monotonic()
        for state in [state for state, each in self._pending.items() if each.until < now]:
            del self._pending[state]
        network = network_of(peer)
        same = sum(each.network == network for each in self._pending.values())
        if len(self._pending) >= _MAX_PENDING or (peer and same >= _MAX_PENDING_PEER):
            raise errors.TooManyRequests("too many sign-ins wait; try again in some minutes")
        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        self._pending[state] = _Pending(
            _digest(browser), network, verifier, nonce, device_code, now + _PENDING_SECONDS
        )
        challenge = urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=")
        asked = {
            "response_type": "code",
            "client_id": self._settings.client_id,
            "redirect_uri": self._callback,
            "scope": " ".join(("openid", *self._settings.scopes)),
            "state": state,
            "nonce": nonce,
            "code_challenge": challenge.decode(),
            "code_challenge_method": "S256",
        }
        endpoint = str(provider["authorization_endpoint"])
        return f"{endpoint}{'&' if '?' in endpoint else '?'}{urlencode(asked)}"

    async def finish(
        self, browser: str, state: str, code: str, error: str
    ) -> tuple[RowMapping, str]:
        """Return the user whom the provider sent back, and the code that ``begin`` was given.

        Raises ``errors.NotSignedIn``, ``errors.NotAllowed`` for who may not become a user, and
        ``errors.Unavailable`` when the provider does not answer.
        """
        pending = self._pending.pop(state, None)
        stale = pending is None or pending.until < time.monotonic()
        if pending is None or stale or not hmac.compare_digest(pending.browser, _digest(browser)):
            raise errors.NotSignedIn("this sign-in is too old, or another browser's; begin again")
        if error or not code:
            reason = error[:100] or "no code"
            raise errors.NotSignedIn(f"{self.name} did not sign you in ({reason})")
        claims = await self._claims(code, pending)
        return await self._user(claims), pending.device_code

    # -- the provider

    @property
    def _callback(self) -> str:
        return self._settings.server_url.rstrip("/") + "/login/oidc/callback"

    async def _discover(self) -> dict[str, Any]:
        if self._provider is None:
            url = self._settings.issuer.rstrip("/") + "/.well-known/openid-configuration"
            found = await self._ask("GET", url)
            # Ours may lack the slash that some write at its end.
            if str(found.get("issuer")).rstrip("/") != self._settings.issuer.rstrip("/"):
                raise errors.Unavailable(
                    f"{self.name} says it is {found.get('issuer')!r}; mend oidc.issuer"
                )
            for name in ("authorization_endpoint", "token_endpoint", "jwks_uri"):
                if not _is_safe(str(found.get(name, "")), self._settings.issuer):
                    raise errors.Unavailable(f"{self.name} names no {name} that is safe to use")
            self._provider = found
        return self._provider

    async def _claims(self, code: str, pending: _Pending) -> Mapping[str, Any]:
        """Exchange the code; return what the provider says of the user, checked."""
        from joserfc import jwt  # noqa: PLC0415 - only where there is a provider
        from joserfc.errors import InvalidKeyIdError, JoseError  # noqa: PLC0415

        settings = self._settings
        provider = await self._discover()
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self._callback,
            "code_verifier": pending.verifier,
        }
        methods = provider.get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
        basic = "client_secret_basic" in methods
        if not basic:
            form |= {"client_id": settings.client_id, "client_secret": settings.client_secret}
        answer = await self._ask("POST", str(provider["token_endpoint"]), form, basic=basic)
        text = str(answer.get("id_token", ""))
        registry = jwt.JWTClaimsRegistry(
            leeway=_LEEWAY_SECONDS,
            iss={"essential": True, "value": provider["issuer"]},
            aud={"essential": True, "value": settings.client_id},
            exp={"essential": True},
            iat={"essential": True},
            sub={"essential": True},
            nonce={"essential": True, "value": pending.nonce},
        )
        try:
            try:
                token = jwt.decode(text, await self._key_set(), algorithms=_ALGORITHMS)
            except InvalidKeyIdError:  # it is signed with a key that we do not know yet
                token = jwt.decode(text, await self._key_set(again=True), algorithms=_ALGORITHMS)
            registry.validate(token.claims)
        except (JoseError, ValueError) as error:
            raise errors.NotSignedIn(
                f"{self.name} sent a token that cannot be trusted ({type(error).__name__})"
            ) from error
        claims: dict[str, Any] = token.claims
        several = isinstance(claims["aud"], list) and len(claims["aud"]) > 1
        if several and claims.get("azp") != settings.client_id:
            raise errors.NotSignedIn(f"{self.name} sent a token that is for another program")
        return claims

    async def _key_set(self, *, again: bool = False) -> KeySet:
        from joserfc.jwk import KeySet  # noqa: PLC0415

        age = time.monotonic() - self._keys_at
        if self._keys is None or age > (_KEYS_AGAIN_SECONDS if again else _KEYS_SECONDS):
            provider = await self._discover()
            found = await self._ask("GET", str(provider["jwks_uri"]))
            keys = found.get("keys")
            if not isinstance(keys, list) or not all(isinstance(key, dict) for key in keys):
                raise errors.Unavailable(f"{self.name} does not say its keys; try again")
            usable = [key for key in keys if key.get("use", "sig") == "sig"]
            self._keys = KeySet.import_key_set({"keys": usable})
            self._keys_at = time.monotonic()
        return self._keys

    async def _ask(
        self, method: str, url: str, form: dict[str, str] | None = None, *, basic: bool = False
    ) -> dict[str, Any]:
        import httpx  # noqa: PLC0415 - only where there is a provider

        secret = (self._settings.client_id, self._settings.client_secret)
        auth = httpx.BasicAuth(*secret) if basic else None
        body = bytearray()
        try:
            async with (
                asyncio.timeout(_ANSWER_SECONDS),
                httpx.AsyncClient(
                    verify=self._trusted, timeout=_TIMEOUT_SECONDS, trust_env=False
                ) as client,
                client.stream(method, url, data=form, auth=auth, headers=_PLAIN) as answer,
            ):
                if form is not None and answer.status_code in (400, 401):
                    raise errors.NotSignedIn(f"{self.name} did not take the code; begin again")
                answer.raise_for_status()
                async for piece in answer.aiter_raw(_PIECE_BYTES):
                    body += piece
                    if len(body) > _MAX_BYTES:
                        raise ValueError("the answer is too long")
            found = json.loads(body)
        except (httpx.HTTPError, TimeoutError, ValueError) as error:
            raise errors.Unavailable(
                f"{self.name} does not answer as it should ({type(error).__name__}); try again"
            ) from error
        if not isinstance(found, dict):
            raise errors.Unavailable(f"{self.name} does not answer as it should; try again")
        return found

    # -- users

    async def _user(self, claims: Mapping[str, Any]) -> RowMapping:
        """Return the user whom the claims are about, linked or made if they may be."""
        settings = self._settings
        issuer, subject = settings.issuer, str(claims["sub"])
        email = str(claims.get("email") or "")
        verified = email if claims.get("email_verified") is True else ""
        allowed = self._may_become_user(claims, verified)

        def write(connection: Connection) -> RowMapping:
            user = queries.find_linked(connection, issuer, subject)
            if user is None:
                user = self._link(connection, claims, verified, allowed)
            if user["disabled"] or user["removed_ns"] is not None:
                raise errors.NotAllowed("you are not a user of this server; ask its admin")
            return user

        found = await self._database.read(
            lambda connection: queries.find_linked(connection, issuer, subject)
        )
        if found is not None and not found["disabled"] and found["removed_ns"] is None:
            return found
        user = await self._database.write(write)
        await self._changed()
        return user

    def _may_become_user(self, claims: Mapping[str, Any], verified: str) -> bool:
        domain = verified.rpartition("@")[2].lower()
        if domain and domain in self._domains:
            return True
        groups = claims.get(self._settings.groups_claim)
        return isinstance(groups, list) and any(each in groups for each in self._settings.groups)

    def _link(
        self, connection: Connection, claims: Mapping[str, Any], verified: str, allowed: bool
    ) -> RowMapping:
        settings = self._settings
        link = {"oidc_issuer": settings.issuer, "oidc_subject": str(claims["sub"])}
        # Whom a server admin made with this address is meant to come.
        known = queries.find_unlinked(connection, verified) if verified else ()
        if len(known) == 1:
            queries.update_user(connection, known[0]["serial"], link)
            name = str(known[0]["name"])
            note(connection, Principal(name), "link user", name, issuer=settings.issuer)
            return accounts.find(connection, name)
        if not allowed:
            raise errors.NotAllowed("you are not a user of this server; ask its admin")
        name = self._new_name(connection, claims, verified)
        new = NewUser(name, _shown(claims.get("name")), _shown(verified))
        serial = queries.insert_user(connection, {**accounts.user_values(new, None), **link})
        note(connection, Principal(name), "create user", name, issuer=settings.issuer)
        project = settings.project and queries.find_project(connection, settings.project)
        if project:
            keys = {"project_serial": project["serial"], "user_serial": serial}
            queries.insert_member(connection, {**keys, "role": Role.MEMBER})
        return accounts.find(connection, name)

    def _new_name(self, connection: Connection, claims: Mapping[str, Any], verified: str) -> str:
        """Return a name for a new user; never one that was given, nor one of their own choice.

        A name may be an account's on a runner, or be whom a runner serves.
        """
        wanted = self._settings.name_claim
        if not wanted:
            name, _, domain = verified.lower().rpartition("@")
            if domain in self._domains:
                return _free_name(connection, name)
            # Outside of our domains the part before the @ is anybody's choice.
            subject = f"{self._settings.issuer} {claims['sub']}"
            return _free_name(connection, verified.lower() or f"user-{_digest(subject).hex()[:8]}")
        said = claims.get(wanted)
        if not isinstance(said, str) or not accounts.can_be_name(said):
            raise errors.NotAllowed(
                f"{self.name} says no {wanted} of you that can be a user's name; ask its admin"
            )
        if queries.name_was_given(connection, said):
            raise errors.NotAllowed(
                f"{said} is the name of another user of this server, or was; ask its admin"
            )
        return said


def _free_name(connection: Connection, wish: str) -> str:
    """Return a name that nobody has or had, made of ``wish``."""
    base = re.sub(r"[^a-z0-9._-]+", "-", wish).lstrip("._-")[:50] or "user"
    name, number = base, 1
    while queries.name_was_given(connection, name):
        number += 1
        name = f"{base}-{number}"
    return name


def _shown(value: object) -> str:
    text = str(value or "")
    return text[:200] if text.isprintable() else ""


def _trusted(ca_file: str) -> ssl.SSLContext:
    trusted = ssl.create_default_context()
    if ca_file:
        try:
            trusted.load_verify_locations(ca_file)
        except OSError as error:
            bad = isinstance(error, ssl.SSLError)
            why = "it holds no certificate as PEM" if bad else error.strerror
            raise errors.BadConfiguration(
                f"sign_in.oidc.ca_file: cannot use {ca_file}: {why}"
            ) from error
    return trusted


def _is_safe(url: str, issuer: str) -> bool:
    """Whether an endpoint is reached by TLS, or, as the issuer itself, on this machine."""
    parts, own = urlsplit(url), urlsplit(issuer)
    return parts.scheme == "https" or (parts.scheme, parts.netloc) == (own.scheme, own.netloc)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="replace")).digest()
