"""Signing a program in by a browser: it shows a code, and its user confirms that code elsewhere.

As RFC 8628 has it.  What waits is held in memory, for ten minutes and in a bounded number: after a
restart the program asks for a new code.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256

from sqlalchemy import RowMapping

from updraft import errors
from updraft.server.auth.backoff import Backoff, network_of
from updraft.server.services import accounts
from updraft.server.services.sign_in import SignedIn, SignIn

EXPIRES_SECONDS = 600.0
INTERVAL_SECONDS = 5.0
_SLOWER_SECONDS = 5.0
_SIGNS = "BCDFGHJKLMNPQRSTVWXZ"  # no vowels: no words; RFC 8628, 6.1
_CODE_SIGNS = 8
_MAX_WAITING = 1000
_MAX_WAITING_PEER = 20


class Answer(StrEnum):
    """What a program that polls gets to hear."""

    PENDING = "pending"
    SLOW_DOWN = "slow_down"
    DENIED = "denied"
    EXPIRED = "expired"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Asked:
    """What a program is told that asks to be signed in."""

    device_code: str
    user_code: str
    expires_seconds: float
    interval_seconds: float


@dataclass(slots=True)
class Waiting:
    """A program that waits for its user."""

    user_code: str
    client: str
    """What it says it is."""
    peer: str
    until: float
    interval: float = INTERVAL_SECONDS
    asked: float | None = None
    denied: bool = False
    user: RowMapping | None = None


class Devices:
    """The programs that wait to be signed in."""

    def __init__(self, sign_in: SignIn, clock: Callable[[], float] = time.monotonic) -> None:
        self._sign_in = sign_in
        self._clock = clock
        self._waiting: dict[bytes, Waiting] = {}
        self._guesses = Backoff(free=10, longest_seconds=900)

    def ask(self, client: str, peer: str) -> Asked:
        """Return the codes for a program.  Raises ``errors.TooManyRequests``."""
        accounts.check_text("client", client)
        self._drop_old()
        network = network_of(peer)
        same = sum(network_of(each.peer) == network for each in self._waiting.values())
        if len(self._waiting) >= _MAX_WAITING or (peer and same >= _MAX_WAITING_PEER):
            raise errors.TooManyRequests("too many sign-ins wait; try again in some minutes")
        device_code = secrets.token_hex(32)
        taken = {each.user_code for each in self._waiting.values()}
        while (user_code := _new_code()) in taken:
            pass
        until = self._clock() + EXPIRES_SECONDS
        self._waiting[_key(device_code)] = Waiting(user_code, client, peer, until)
        return Asked(device_code, user_code, EXPIRES_SECONDS, INTERVAL_SECONDS)

    def find(self, user_code: str, peer: str = "") -> Waiting | None:
        """Return the program that shows this code and has no answer yet.

        Raises ``errors.TooManyRequests`` where ``peer`` has named many that nobody shows.
        """
        network = network_of(peer)
        if network:
            self._guesses.check(network)
        self._drop_old()
        code = "".join(sign for sign in user_code.upper() if sign in _SIGNS)
        for each in self._waiting.values():
            if each.user_code.replace("-", "") == code and each.user is None and not each.denied:
                return each
        if network:
            self._guesses.failed(network)
        return None

    def confirm(self, waiting: Waiting, user: RowMapping) -> None:
        """Sign the program in as this user."""
        waiting.user = user

    def deny(self, waiting: Waiting) -> None:
        """Let the program know that its user did not mean it."""
        waiting.denied = True

    async def poll(self, device_code: str, peer: str) -> tuple[Answer, SignedIn | None, float]:
        """Return the answer so far, the credential if confirmed, and the seconds to the next."""
        self._drop_old()
        key = _key(device_code)
        waiting = self._waiting.get(key)
        if waiting is None:
            return Answer.EXPIRED, None, 0
        now = self._clock()
        early = waiting.asked is not None and now - waiting.asked < waiting.interval
        waiting.asked = now
        if waiting.denied:
            del self._waiting[key]
            return Answer.DENIED, None, 0
        if waiting.user is not None:
            del self._waiting[key]  # before anything is awaited: a code is good once
            try:
                made = await self._sign_in.begin_session(
                    waiting.user, peer=peer, client=waiting.client
                )
            except errors.NotSignedIn:  # a new password ends what was confirmed under the old one
                return Answer.DENIED, None, 0
            return Answer.DONE, made, 0
        if early:
            waiting.interval += _SLOWER_SECONDS
            return Answer.SLOW_DOWN, None, waiting.interval
        return Answer.PENDING, None, waiting.interval

    def _drop_old(self) -> None:
        now = self._clock()
        for key in [key for key, each in self._waiting.items() if each.until <= now]:
            del self._waiting[key]


def _new_code() -> str:
    signs = "".join(secrets.choice(_SIGNS) for _ in range(_CODE_SIGNS))
    return f"{signs[:4]}-{signs[4:]}"


def _key(device_code: str) -> bytes:
    return sha256(device_code.encode(errors="replace")).digest()
