"""Amounts, times and commands as people read them."""

from __future__ import annotations

import shlex
from datetime import datetime

_BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_MAX_PRINTABLE = 4096


def duration(seconds: float) -> str:
    """Return a duration: ``0.2s``, ``12s``, ``1m30s``, ``2h05m``, ``3d04h``."""
    if seconds < 10:
        return f"{max(seconds, 0):.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02}h"


def size(count: int) -> str:
    """Return a size: ``512 B``, ``1.5 MiB``."""
    amount = float(count)
    for unit in _BYTE_UNITS:
        if amount < 1024 or unit == _BYTE_UNITS[-1]:
            return f"{count} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    raise AssertionError


def clock(moment: datetime | None) -> str:
    """Return a time in the reader's zone: ``2026-01-31 12:00:00``; ``-`` for none."""
    return "-" if moment is None else moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def printable(text: str) -> str:
    """Return text that cannot move a terminal's cursor or change its colours."""
    if text.isprintable():
        return text
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text
    )


def command(words: list[str], room: int = _MAX_PRINTABLE) -> str:
    """Return a command line as a shell would take it, on one line, cut to ``room`` characters."""
    return cut(printable(" ".join(shlex.quote(word) for word in words)), room)


def cut(text: str, room: int) -> str:
    """Return at most ``room`` characters; the last says if there were more."""
    return text if len(text) <= room else text[: room - 1] + "…"


def yes_no(value: bool | None) -> str:
    """Return yes, no, or ``-`` for what is not known yet."""
    return "-" if value is None else "yes" if value else "no"


def joined(*parts: tuple[str, object]) -> str:
    """Return the texts beside what is true, ``-`` when nothing is."""
    return ", ".join(label for label, there in parts if there) or "-"
