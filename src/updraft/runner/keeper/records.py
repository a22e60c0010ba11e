"""What a keeper must know after a crash: one small file for each attempt it was told to start.

The file is there before the attempt starts (its intent), gets a second line with the attempt's end,
and goes when the server has stored that end.  A later keeper finds: no file, the attempt never
started; a file without an end, it died with its keeper; a file with one, it ended and can be told.
"""

from __future__ import annotations

import os

from updraft.wire.packing import PackingError, pack, unpack_dict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Records:
    """The records in one folder, by attempt serial."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        os.makedirs(folder, mode=0o700, exist_ok=True)

    def intend(self, attempt: int, intent: dict[str, Any]) -> None:
        """Record that ``attempt`` is about to start.  Raises ``OSError`` (a full disk)."""
        path = self._path(attempt)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, _line(intent))
        except OSError:
            os.unlink(path)
            raise
        finally:
            os.close(fd)

    def end(self, attempt: int, end: dict[str, Any]) -> None:
        """Record how ``attempt`` ended."""
        with open(self._path(attempt), "ab") as file:
            file.write(_line(end))

    def forget(self, attempt: int) -> None:
        """Drop the record: its end is stored elsewhere."""
        try:
            os.unlink(self._path(attempt))
        except FileNotFoundError:
            return

    def load(self) -> dict[int, tuple[dict[str, Any], dict[str, Any] | None]]:
        """Return ``{attempt: (intent, end or None)}`` of an earlier keeper."""
        found: dict[int, tuple[dict[str, Any], dict[str, Any] | None]] = {}
        for name in os.listdir(self._folder):
            if not name.isdigit():
                continue
            with open(os.path.join(self._folder, name), "rb") as file:
                lines = [_parse(line) for line in file.read().split(b"\n.\n")]
            intent = lines[0] or {}
            end = lines[1] if len(lines) > 1 else None
            found[int(name)] = (intent, end)
        return found

    def _path(self, attempt: int) -> str:
        return os.path.join(self._folder, str(attempt))


def _line(body: dict[str, Any]) -> bytes:
    return pack(body) + b"\n.\n"


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        return unpack_dict(line)
    except (PackingError, IndexError):
        return None  # cut short by the crash: as if it had not been written
