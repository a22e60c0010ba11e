"""Per-job keys for stored environments, outside the database and its backups.

A forwarded environment holds credentials.  It is stored encrypted (AES-256-GCM) under a key of its
job's own, and when the job ends the key is *shredded*: overwritten by a fresh random one, which a
later job may get.  No key is used before it is on the disk, or a power cut would take the
environment of an acknowledged job; they are flushed a block at a time, so few submissions wait.
"""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from updraft import errors

_KEY_BYTES = 32
_NONCE_BYTES = 12
_BLOCK_KEYS = 256


class EnvironmentKeys:
    """The keys in one file of mode 0600; ``used`` are the slots that live jobs hold."""

    def __init__(self, path: str, used: set[int]) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.fchmod(self._fd, 0o600)
        stored = Path(path).stat().st_size // _KEY_BYTES
        # A used slot that the file lacks (it was deleted) keeps its number until its job ends.
        self._count = max(stored, *(slot + 1 for slot in used), 0)
        self._free: list[int] = []
        self._shredded: list[int] = []
        # An earlier server may have died between a job's end and its shredding.
        for slot in range(self._count):
            if slot not in used:
                self.shred(slot)
            elif slot >= stored:
                self._renew(slot)
        self._flush()

    def encrypt(self, environment: bytes) -> tuple[int, bytes]:
        """Return a slot, whose key is the caller's until it is shredded, and the ciphertext."""
        if not self._free:
            if len(self._shredded) < _BLOCK_KEYS // 2:
                self._grow()
            self._flush()
        slot = self._free.pop()
        nonce = os.urandom(_NONCE_BYTES)
        return slot, nonce + AESGCM(self._key(slot)).encrypt(nonce, environment, None)

    def decrypt(self, slot: int, data: bytes) -> bytes | None:
        """Return the environment, None when its key is gone (a crash, a restored backup)."""
        try:
            return AESGCM(self._key(slot)).decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], None)
        except (InvalidTag, ValueError):  # ValueError: a key or a nonce that is cut short
            return None

    def shred(self, slot: int) -> None:
        """Overwrite the key: what was encrypted under it is lost for good."""
        self._renew(slot)
        self._shredded.append(slot)

    def close(self) -> None:
        """Flush the shredded slots and close the file."""
        self._flush()
        os.close(self._fd)

    def _key(self, slot: int) -> bytes:
        return os.pread(self._fd, _KEY_BYTES, slot * _KEY_BYTES)

    def _renew(self, slot: int) -> None:
        self._write(slot, os.urandom(_KEY_BYTES))

    def _grow(self) -> None:
        self._write(self._count, os.urandom(_KEY_BYTES * _BLOCK_KEYS))
        self._shredded.extend(range(self._count, self._count + _BLOCK_KEYS))
        self._count += _BLOCK_KEYS

    def _flush(self) -> None:
        if self._shredded:
            os.fsync(self._fd)
            self._free += self._shredded
            self._shredded.clear()

    def _write(self, slot: int, keys: bytes) -> None:
        try:
            count = os.pwrite(self._fd, keys, slot * _KEY_BYTES)
        except OSError as error:
            raise errors.DiskFull(
                f"the state folder takes no key for the environment: {error.strerror}; "
                "free some space"
            ) from error
        if count != len(keys):
            raise errors.DiskFull("the disk of the state folder is full; free some space")
