"""Secrets that programs carry: made here, shown once, stored as a digest.

A credential reads ``updraft_KIND_ID_SECRET``: the id finds its row, the secret proves it.  The
secret has 256 random bits, so its SHA-256 is all that has to be stored (a slow hash protects what
people choose), and a leaked one is recognised by its prefix.
"""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256

_PREFIX = "updraft"
_ID_BYTES = 6
_SECRET_BYTES = 32
_HEX = frozenset("0123456789abcdef")


class Kind(StrEnum):
    """What a credential is for."""

    USER = "user"
    """Acts as a user: a token they made, or a session that began with a sign-in."""
    BROWSER = "browser"
    """Signs a browser in to the pages under ``/login``, and is good for nothing else."""
    JOIN = "join"
    """Lets machines become runners of one pool."""
    RUNNER = "runner"
    """Is one runner."""


@dataclass(frozen=True, slots=True)
class Credential:
    """A credential as its holder has it."""

    kind: Kind
    id: str
    secret: str

    def __repr__(self) -> str:
        return f"Credential({self.kind}, {self.id}, …)"

    @property
    def text(self) -> str:
        """The whole of it: shown to its holder once, and never logged."""
        return f"{_PREFIX}_{self.kind}_{self.id}_{self.secret}"

    @property
    def digest(self) -> bytes:
        """What the server stores of it."""
        return sha256(self.secret.encode()).digest()

    def matches(self, digest: bytes) -> bool:
        """Whether ``digest`` is this one's, in a time that tells nothing."""
        return hmac.compare_digest(self.digest, digest)


def new(kind: Kind) -> Credential:
    """Return a fresh credential."""
    return Credential(kind, secrets.token_hex(_ID_BYTES), secrets.token_hex(_SECRET_BYTES))


def parse(text: str) -> Credential | None:
    """Return the credential that ``text`` is, None when it is none."""
    match text.split("_"):
        case [prefix, kind, identity, secret] if prefix == _PREFIX and kind in list(Kind):
            return Credential(Kind(kind), identity, secret) if can_be_id(identity) else None
    return None


def can_be_id(text: str) -> bool:
    """Whether a credential could have this id."""
    return len(text) == 2 * _ID_BYTES and _HEX.issuperset(text)
