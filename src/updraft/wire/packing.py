"""A small self-describing encoding for control messages.

JSON has no bytes, and arguments, paths and environment values of a POSIX process *are* bytes; its
import also costs more than a whole launch may spend on decoding.  The format is bencode (BitTorrent
BEP 3) with four more types, so that a decoded message compares equal to the one that was packed:

    i42e  integer      s3:abc  text (UTF-8)      l…e  list       t  True     n  None
    3:abc bytes        d…e     dict with text keys               f  False

Limits: no floats (durations travel as integer nanoseconds or milliseconds), integers of 64 bits
with a sign (as databases have them), nesting up to ``MAX_DEPTH``, up to ``MAX_VALUES`` values in
all: a value of two bytes takes sixty when it is unpacked.  What cannot be read again is not
packed, and decoding trusts nothing: anything malformed raises ``PackingError``.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAX_DEPTH = 16
MAX_VALUES = 700_000
"""More than the arguments and variables that Linux lets a process have, at ten bytes each."""
_LOWEST, _HIGHEST = -(1 << 63), (1 << 63) - 1


class PackingError(ValueError):
    """The bytes are not a packed value, or the value cannot be packed."""


def pack(value: Any) -> bytes:
    """Return ``value`` packed; bytes, str, int, bool, None, lists, tuples and str-keyed dicts.

    Raises ``PackingError``, also for text that is not UTF-8 (undecodable arguments of a process).
    """
    out: list[bytes] = []
    try:
        _pack(value, out, 0)
    except UnicodeEncodeError as error:
        raise PackingError(f"not text: {error.object!r}") from error
    return b"".join(out)


def unpack(data: bytes) -> Any:
    """Return the one value that ``data`` holds.  Raises ``PackingError`` on anything else."""
    try:
        value, end = _unpack(data, 0, 0, [MAX_VALUES])
    except (IndexError, ValueError) as error:
        raise PackingError(f"not a packed value: {error}") from error
    if end != len(data):
        raise PackingError(f"{len(data) - end} bytes follow the value")
    return value


def unpack_dict(data: bytes) -> dict[str, Any]:
    """Return the dict that ``data`` holds; every control message is one."""
    value = unpack(data)
    if type(value) is not dict:
        raise PackingError(f"a message is a dict, not {type(value).__name__}")
    return value


def _pack(value: Any, out: list[bytes], depth: int) -> None:
    if depth > MAX_DEPTH:
        raise PackingError(f"nested deeper than {MAX_DEPTH}")
    kind = type(value)
    if kind is str:
        data = value.encode()
        out.append(b"s%d:" % len(data))
        out.append(data)
    elif kind is bytes:
        out.append(b"%d:" % len(value))
        out.append(value)
    elif kind is bool:
        out.append(b"t" if value else b"f")
    elif value is None:
        out.append(b"n")
    elif isinstance(value, int):
        if not _LOWEST <= value <= _HIGHEST:
            raise PackingError("an integer has more than 64 bits")
        out.append(b"i%de" % value)
    elif kind is dict:
        out.append(b"d")
        for key, item in value.items():
            if type(key) is not str:
                raise PackingError(f"keys are text, not {type(key).__name__}")
            _pack(key, out, depth + 1)
            _pack(item, out, depth + 1)
        out.append(b"e")
    elif kind is list or kind is tuple:
        out.append(b"l")
        for item in value:
            _pack(item, out, depth + 1)
        out.append(b"e")
    elif isinstance(value, str):  # a StrEnum member travels as its value
        _pack(str(value), out, depth)
    else:
        raise PackingError(f"cannot pack {kind.__name__}")


def _unpack(data: bytes, at: int, depth: int, left: list[int]) -> tuple[Any, int]:
    if depth > MAX_DEPTH:
        raise PackingError(f"nested deeper than {MAX_DEPTH}")
    mark = data[at]
    if 0x30 <= mark <= 0x39:  # a digit: bytes
        start, end = _span(data, at)
        return data[start:end], end
    if mark == 0x73:  # s
        start, end = _span(data, at + 1)
        return data[start:end].decode(), end
    if mark == 0x69:  # i
        stop = data.index(b"e", at)
        return _integer(data[at + 1 : stop]), stop + 1
    if mark == 0x64:  # d
        result: dict[str, Any] = {}
        at += 1
        while data[at] != 0x65:
            key, at = _unpack(data, at, depth + 1, left)
            if type(key) is not str:
                raise PackingError("a key is not text")
            result[key], at = _unpack(data, at, depth + 1, left)
            left[0] -= 2
            if left[0] < 0:
                raise PackingError(f"more than {MAX_VALUES} values")
        return result, at + 1
    if mark == 0x6C:  # l
        items: list[Any] = []
        at += 1
        while data[at] != 0x65:
            item, at = _unpack(data, at, depth + 1, left)
            items.append(item)
            left[0] -= 1
            if left[0] < 0:
                raise PackingError(f"more than {MAX_VALUES} values")
        return items, at + 1
    if mark == 0x74:
        return True, at + 1
    if mark == 0x66:
        return False, at + 1
    if mark == 0x6E:
        return None, at + 1
    raise PackingError(f"unknown type mark {mark:#x}")


def _integer(digits: bytes) -> int:
    if len(digits) > 20 or not digits.removeprefix(b"-").isdigit():
        raise PackingError("not an integer")
    value = int(digits)
    if not _LOWEST <= value <= _HIGHEST:
        raise PackingError("an integer has more than 64 bits")
    return value


def _span(data: bytes, at: int) -> tuple[int, int]:
    colon = data.index(b":", at, at + 12)
    if not data[at:colon].isdigit():
        raise PackingError("not a length")
    start = colon + 1
    end = start + int(data[at:colon])
    if end > len(data):
        raise PackingError("a value is cut short")
    return start, end
