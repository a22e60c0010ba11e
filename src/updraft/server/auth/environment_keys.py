"""Per-job keys for stored environments, outside the database and its backups.

A forwarded environment holds credentials.  It is stored encrypted (AES-256-GCM) under a key of its
job's own, and when the job ends the key is *shredded*: overwritten by a fresh random one, which a
later job may get.  No key is used before it is on the disk, or a power cut would take the
environment of an acknowledged job; they are flushed a block at a time, so few submissions wait.

Where servers follow each other on one folder, each makes a file of its own for the keys that it
hands out, and overwrites in its predecessors' only the keys of jobs that have ended.  So one that
was succeeded and does not know it yet, stopped in the middle of whatever it did, can spoil no key
of its successor's jobs.
"""

from __future__ import annotations

import hmac
import os
from collections import defaultdict
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from updraft import errors

_KEY_BYTES = 32
_NONCE_BYTES = 12
_BLOCK_KEYS = 256
_INDEX_BITS = 22
_MAX_FILES = 1 << 31 - _INDEX_BITS
"""A slot, of 31 bits, is the number of a file and an index in it."""


class EnvironmentKeys:
    """The keys in files of mode 0600; ``used`` are the slots that live jobs hold.

    The only server of a folder has them in ``path`` itself; one of several, in a file of its own.
    """

    def __init__(self, path: str, used: set[int], before: Predecessors | None = None) -> None:
        """``before``: who had the folder; found before ``used`` was, and after they were fenced."""
        self._files: dict[int, _KeyFile] = {}
        by_file: defaultdict[int, set[int]] = defaultdict(set)
        for slot in used:
            by_file[slot >> _INDEX_BITS].add(slot & (1 << _INDEX_BITS) - 1)
        if before is None:
            self._number = 0
            self._files[0] = _KeyFile(path)
        else:
            for number in list(before.files):
                if before.shred(number, by_file[number]):
                    self._files[number] = before.files[number]
            self._number = before.make_file()
            self._files[self._number] = before.files[self._number]
        self._own = self._files[self._number]
        kept = by_file[self._number]
        # A used slot that the file lacks (it was deleted) keeps its number until its job ends.
        self._count = max(self._own.count(), *(index + 1 for index in kept), 0)
        self._free: list[int] = []
        self._shredded: list[int] = []
        # An earlier server may have died between a job's end and its shredding.
        stored = self._own.count()
        for index in range(self._count):
            if index not in kept:
                self._shred_own(index)
            elif index >= stored:
                self._own.renew(index)
        self._flush()

    def encrypt(self, environment: bytes) -> tuple[int, bytes]:
        """Return a slot, whose key is the caller's until it is shredded, and the ciphertext."""
        if not self._free:
            if len(self._shredded) < _BLOCK_KEYS // 2:
                self._grow()
            self._flush()
        index = self._free.pop()
        nonce = os.urandom(_NONCE_BYTES)
        key = AESGCM(self._own.key(index))
        slot = self._number << _INDEX_BITS | index
        return slot, nonce + key.encrypt(nonce, environment, None)

    def decrypt(self, slot: int, data: bytes) -> bytes | None:
        """Return the environment, None when its key is gone (a crash, a restored backup)."""
        file, index = self._place(slot)
        if file is None:
            return None
        try:
            key = AESGCM(file.key(index))
            return key.decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], None)
        except (InvalidTag, ValueError):  # ValueError: a key or a nonce that is cut short
            return None

    def derive(self, slot: int, purpose: bytes) -> bytes | None:
        """Return a key of the same job for another purpose; None when its key is gone."""
        file, index = self._place(slot)
        key = b"" if file is None else file.key(index)
        return hmac.digest(key, purpose, "sha256") if len(key) == _KEY_BYTES else None

    def shred(self, slot: int) -> None:
        """Overwrite the key: what was encrypted under it is lost for good."""
        file, index = self._place(slot)
        if file is self._own:
            self._shred_own(index)
        elif file is not None:
            file.renew(index)

    def close(self) -> None:
        """Flush the shredded slots and close the files."""
        self._flush()
        for file in self._files.values():
            file.close()

    def _place(self, slot: int) -> tuple[_KeyFile | None, int]:
        return self._files.get(slot >> _INDEX_BITS), slot & (1 << _INDEX_BITS) - 1

    def _shred_own(self, index: int) -> None:
        self._own.renew(index)
        self._shredded.append(index)

    def _grow(self) -> None:
        self._own.write(self._count, os.urandom(_KEY_BYTES * _BLOCK_KEYS))
        self._shredded.extend(range(self._count, self._count + _BLOCK_KEYS))
        self._count += _BLOCK_KEYS

    def _flush(self) -> None:
        if self._shredded:
            self._own.flush()
            self._free += self._shredded
            self._shredded.clear()


class Predecessors:
    """The files of keys that there are as a server begins its ``epoch``."""

    def __init__(self, path: str, epoch: int) -> None:
        self._path = path
        self._epoch = epoch
        self.files = {
            number: _KeyFile(self._file(number))
            for number in range(_MAX_FILES)
            if Path(self._file(number)).exists()
        }

    def _file(self, number: int) -> str:
        return f"{self._path}.{number}" if number else self._path

    def shred(self, number: int, used: set[int]) -> bool:
        """Overwrite what no live job holds of a file.  Returns whether it is needed still."""
        file = self.files[number]
        for index in range(file.count()):
            if index not in used:
                file.renew(index)
        file.flush()
        if not used:
            file.close()
            # No successor has made it anew: that would have another number.
            Path(self._file(number)).unlink(missing_ok=True)
        return bool(used)

    def make_file(self) -> int:
        """Make a file that nobody else has; return its number, the epoch's if that is free."""
        for after in range(_MAX_FILES):
            number = (self._epoch + after) % _MAX_FILES
            try:
                self.files[number] = _KeyFile(self._file(number), os.O_EXCL)
            except FileExistsError:
                continue
            return number
        raise errors.Unavailable(
            f"there are {_MAX_FILES} files {self._path}.*, each with keys of live jobs; "
            "cancel the oldest jobs, and start the server again"
        )


class _KeyFile:
    """One file of keys, by their index."""

    def __init__(self, path: str, flags: int = 0) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | flags, 0o600)
        os.fchmod(self._fd, 0o600)

    def count(self) -> int:
        """Return how many keys are stored."""
        return os.fstat(self._fd).st_size // _KEY_BYTES

    def key(self, index: int) -> bytes:
        """Return a key; cut short where there is none."""
        return os.pread(self._fd, _KEY_BYTES, index * _KEY_BYTES)

    def renew(self, index: int) -> None:
        """Put a fresh random key in a key's place."""
        self.write(index, os.urandom(_KEY_BYTES))

    def write(self, index: int, keys: bytes) -> None:
        """Store keys from an index on.  Raises ``errors.DiskFull``."""
        try:
            count = os.pwrite(self._fd, keys, index * _KEY_BYTES)
        except OSError as error:
            raise errors.DiskFull(
                f"the state folder takes no key for the environment: {error.strerror}; "
                "free some space"
            ) from error
        if count != len(keys):
            raise errors.DiskFull("the disk of the state folder is full; free some space")

    def flush(self) -> None:
        """Have all on the disk."""
        os.fsync(self._fd)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)
