"""Reading and writing amounts as people write them: ``512M``, ``90s``, ``0.5``."""

from __future__ import annotations

from updraft import errors

_BYTE_UNITS = {"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_MAX_BYTES = 1 << 60
_SECOND_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_MAX_SECONDS = 10 * 365 * 86400.0


def parse_bytes(text: str) -> int:
    """Return a size in bytes: ``1048576``, ``512M``, ``2G``, ``1.5GiB``; units are powers of 1024.

    Raises ``errors.BadRequest``.
    """
    number, unit = _split(text.strip())
    key = unit.upper()
    if key[1:] in ("B", "IB"):
        key = key[0]
    if number is None or key not in _BYTE_UNITS or number * _BYTE_UNITS[key] > _MAX_BYTES:
        raise errors.BadRequest(f"{text!r} is not a size; write it like 512M, 2G or 1.5G")
    return int(number * _BYTE_UNITS[key])


def parse_duration(text: str) -> float:
    """Return a time in seconds: ``90``, ``90s``, ``15m``, ``2h``, ``1h30m``, ``1d``, ``HH:MM:SS``.

    Raises ``errors.BadRequest``.
    """
    problem = errors.BadRequest(f"{text!r} is not a duration; write it like 90s, 15m, 2h or 1h30m")
    rest = text.strip()
    total = 0.0
    first = True
    if ":" in rest:
        parts = rest.split(":")
        if not 2 <= len(parts) <= 3 or not all(part.isdecimal() for part in parts):
            raise problem
        for part in parts:
            total = total * 60 + float(part)
        rest, first = "", False
    while rest or first:
        number, rest = _split(rest)
        unit = _leading_letters(rest)
        if number is None or number < 0 or (unit not in _SECOND_UNITS and (unit or not first)):
            raise problem
        total += number * _SECOND_UNITS.get(unit, 1.0)
        rest = rest[len(unit) :]
        first = False
    if total > _MAX_SECONDS:
        raise problem
    return total


def parse_cpus(text: str) -> int:
    """Return CPUs in thousandths: ``2``, ``0.5``, ``500m``.  Raises ``errors.BadRequest``."""
    number, unit = _split(text.strip())
    milli = -1 if number is None or number > 1e6 else round(number * (1 if unit == "m" else 1000))
    if unit not in ("", "m") or milli < 0 or (number and not milli):
        raise errors.BadRequest(f"{text!r} is not a number of CPUs; write it like 2 or 0.5")
    return milli


def _split(text: str) -> tuple[float | None, str]:
    end = 0
    while end < len(text) and (text[end].isdecimal() or text[end] == "."):
        end += 1
    try:
        return float(text[:end]), text[end:]
    except ValueError:
        return None, text


def _leading_letters(text: str) -> str:
    end = 0
    while end < len(text) and text[end].isalpha():
        end += 1
    return text[:end]
