"""Passwords, hashed with argon2id; a few at a time, since each takes memory and a core."""

from __future__ import annotations

import asyncio
import functools
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from updraft import errors

if TYPE_CHECKING:
    from argon2 import PasswordHasher

T = TypeVar("T")

MIN_LENGTH = 10
MAX_LENGTH = 1000
_AT_ONCE = 2
_MAX_WAITING = 32


class Passwords:
    """Hashes and checks passwords, off the loop; at most two at once and some that wait."""

    def __init__(self) -> None:
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._waiting = 0
        self._nobodys: str | None = None

    async def hash(self, password: str) -> str:
        """Return what is stored of a password.

        Raises ``errors.BadRequest`` for one that is too short or too long.
        """
        if not MIN_LENGTH <= len(password) <= MAX_LENGTH:
            raise errors.BadRequest(
                f"password: {MIN_LENGTH} to {MAX_LENGTH} characters are needed; choose another"
            )
        return await self._run(functools.partial(_hash, password))

    async def matches(self, stored: str | None, password: str) -> bool:
        """Whether this is the password.  None, nobody's, takes as long to refuse as a wrong one."""
        if self._nobodys is None:
            self._nobodys = await self._run(functools.partial(_hash, secrets.token_hex()))
        given = password[: MAX_LENGTH + 1]
        found = await self._run(functools.partial(_matches, stored or self._nobodys, given))
        return found and stored is not None

    async def _run(self, work: Callable[[], T]) -> T:
        if self._waiting >= _MAX_WAITING:
            raise errors.TooManyRequests("too many sign-ins at once; try again in a few seconds")
        self._waiting += 1
        try:
            async with self._turns:
                return await asyncio.to_thread(work)
        finally:
            self._waiting -= 1


@functools.cache
def _hasher() -> PasswordHasher:
    import argon2  # noqa: PLC0415 - a server of one user never needs it

    # RFC 9106's second recommended choice, 64 MiB, in one lane: two cores check two passwords.
    return argon2.PasswordHasher(time_cost=3, memory_cost=1 << 16, parallelism=1)


def _hash(password: str) -> str:
    return _hasher().hash(_bytes(password))


def _matches(stored: str, password: str) -> bool:
    from argon2.exceptions import InvalidHashError, VerificationError  # noqa: PLC0415

    try:
        return _hasher().verify(stored, _bytes(password))
    except (VerificationError, InvalidHashError):
        return False


def _bytes(password: str) -> bytes:
    # JSON can carry half a surrogate pair, which is no error of a password that is a wrong one.
    return password.encode(errors="surrogatepass")
