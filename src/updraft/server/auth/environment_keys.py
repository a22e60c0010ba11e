"""Per-job keys for stored environments, outside the database and its backups.

A forwarded environment holds credentials.  It is stored encrypted (AES-256-GCM) under a key of its
job's own, and when the job ends the key is *shredded*: overwritten by a fresh random one, which the
next job may get.  Keys are made and flushed a block at a time, so a submission waits for no disk.
"""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_KEY_BYTES = 32
_NONCE_BYTES = 12
_BLOCK_KEYS = 256


class EnvironmentKeys:
    """The keys in one file of mode 0600; ``used`` are the slots that live jobs hold."""

    def __init__(self, path: str, used: set[int]) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.fchmod(self._fd, 0o600)
        count = Path(path).stat().st_size // _KEY_BYTES
        self._count = count
        self._free = [slot for slot in range(count) if slot not in used]

    def encrypt(self, environment: bytes) -> tuple[int, bytes]:
        """Return a slot, whose key is the caller's until it is shredded, and the ciphertext."""
        if not self._free:
            self._grow()
        slot = self._free.pop()
        nonce = os.urandom(_NONCE_BYTES)
        return slot, nonce + AESGCM(self._key(slot)).encrypt(nonce, environment, None)

    def decrypt(self, slot: int, data: bytes) -> bytes | None:
        """Return the environment, None when its key is gone (a crash, a restored backup)."""
        key = self._key(slot)
        if len(key) != _KEY_BYTES:
            return None
        try:
            return AESGCM(key).decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], None)
        except InvalidTag:
            return None

    def shred(self, slot: int) -> None:
        """Overwrite the key: what was encrypted under it is lost for good."""
        os.pwrite(self._fd, os.urandom(_KEY_BYTES), slot * _KEY_BYTES)
        self._free.append(slot)

    def close(self) -> None:
        """Flush the shredded slots and close the file."""
        os.fdatasync(self._fd)
        os.close(self._fd)

    def _key(self, slot: int) -> bytes:
        return os.pread(self._fd, _KEY_BYTES, slot * _KEY_BYTES)

    def _grow(self) -> None:
        block = os.urandom(_KEY_BYTES * _BLOCK_KEYS)
        os.pwrite(self._fd, block, self._count * _KEY_BYTES)
        os.fdatasync(self._fd)
        self._free.extend(range(self._count, self._count + _BLOCK_KEYS))
        self._count += _BLOCK_KEYS
