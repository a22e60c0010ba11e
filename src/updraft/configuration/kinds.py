"""The types that a key can have: how a TOML value becomes ours, and ours one that reads the same.

Readers raise ``errors.BadRequest`` with a message that names the value and the mend; who knows the
key puts its name in front.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import SplitResult, parse_qsl, urlsplit

from updraft import errors, quantities

Seconds = float
Bytes = int
Milli = int
"""Thousandths, of a CPU."""

HIDDEN = "(hidden)"
"""What is shown of a secret."""

NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")
"""What a pool, a runner and named tables are called: what URLs, metrics and file names take too."""
NAME_RULE = "up to 63 small letters, digits and . _ -"

_SECRETS_OF_A_DATABASE = {"password", "sslpassword", "oauth_client_secret"}
"""Keywords of libpq that are told to nobody."""

_MAX_NUMBER = 10**12
_MAX_PORT = 65535
_LEAST_UID = 1000  # below are root and the system's accounts (UID_MIN of login.defs)
_MAX_UID = 2**31 - 1


class Address(NamedTuple):
    """Where to listen or to connect; an empty host is every address of the machine."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class UidRange(NamedTuple):
    """The user ids from ``first`` to ``last``, both included."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"


@dataclass(frozen=True, slots=True)
class Kind:
    """A type of keys."""

    name: str
    """What help calls it, with an example of how it is written where that is not plain."""
    read: Callable[[Any], Any]
    plain: Callable[[Any], Any] = lambda value: value
    """The TOML value (text, number, boolean, list, table) that is read as this one."""
    conceal: Callable[[Any], str] = lambda _: HIDDEN
    """What may be shown of one that is secret."""
    is_path: bool = False
    """Whether a relative one counts from the folder of the file."""


def _duration(value: Any) -> Seconds:
    return round(quantities.parse_duration(str(value)), 3)  # to the millisecond


def _plain_duration(value: Seconds) -> str:
    thousandths = round(value * 1000)
    if thousandths % 1000:
        return f"{thousandths}ms"
    left, text = thousandths // 1000, ""
    for unit, seconds in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, seconds)
        text += f"{count}{unit}" if count else ""
    return text or "0s"


def _size(value: Any) -> Bytes:
    return quantities.parse_bytes(str(value))


def _plain_size(value: Bytes) -> str:
    for unit, count in (("T", 1 << 40), ("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10)):
        if value and value % count == 0:
            return f"{value // count}{unit}"
    return str(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise errors.BadRequest(f"{value!r} is neither true nor false")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise errors.BadRequest(f'{value!r} is no text; put it in quotes: "{value}"')
    if not value.isprintable():
        raise errors.BadRequest(f"{value!r} has signs that cannot be printed; leave them out")
    return value


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise errors.BadRequest(f"{value!r} is not a whole number")
    if abs(value) > _MAX_NUMBER:
        raise errors.BadRequest("it is out of bounds; write a smaller number")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise errors.BadRequest(f"{value!r} is not a number")
    if not -_MAX_NUMBER <= value <= _MAX_NUMBER:  # nor what is not a number, in TOML's sense
        raise errors.BadRequest(f"{value!r} is out of bounds; write a smaller number")
    return float(value)


def _money(value: Any) -> Decimal:
    try:
        if isinstance(value, bool):
            raise InvalidOperation
        amount = Decimal(str(value))
    except InvalidOperation:
        amount = Decimal("nan")
    if not amount.is_finite():
        raise errors.BadRequest(f"{value!r} is not an amount of money; write it like 1.25")
    return amount


def _cpus(value: Any) -> Milli:
    return quantities.parse_cpus(str(value))


def _plain_cpus(value: Milli) -> float:
    return value // 1000 if value % 1000 == 0 else value / 1000


def _address(value: Any) -> Address | None:
    text = _text(value)
    if not text:
        return None
    host, colon, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    known = colon and port.isascii() and port.isdecimal() and int(port) <= _MAX_PORT
    if not known or (":" in bare and bare == host) or not re.fullmatch(r"[\w.:%-]*", bare):
        raise errors.BadRequest(
            f"{text!r} is not an address; write it like 0.0.0.0:8443, [::]:8443 or :8443"
        )
    return Address(bare, int(port))


def _split(text: str) -> SplitResult | None:
    try:
        parts = urlsplit(text)
        return parts if parts.hostname and parts.port != 0 else None
    except ValueError:
        return None


def _url(value: Any) -> str:
    text = _text(value)
    parts = _split(text)
    if text and (parts is None or parts.scheme not in ("http", "https") or " " in text):
        raise errors.BadRequest(f"{text!r} is not a URL; write it like https://updraft.example.com")
    if parts is not None and "@" in parts.netloc:
        raise errors.BadRequest("credentials do not belong into a URL; take them out")
    return text.rstrip("/") if parts is not None and parts.path == "/" else text


def _conceal_url(value: str) -> str:
    parts = urlsplit(value)
    return f"{parts.scheme}://{parts.hostname}/{HIDDEN}" if value else ""


def _database(value: Any) -> str:
    text = _text(value)
    try:
        parts = urlsplit(text)
        named = parts.scheme in ("postgresql", "postgres") and len(parts.path) > 1
        known = named and parts.port != 0
    except ValueError:
        known = False
    if text and not known:
        # Not repeated: it may hold a password.
        raise errors.BadRequest(
            "it is no URL of a database; write it like postgresql://user@host/updraft, "
            "or leave it empty for SQLite"
        )
    if text and _SECRETS_OF_A_DATABASE & {
        name for name, _ in parse_qsl(urlsplit(text).query, True)
    }:
        # There it would be shown, and stand in the arguments of PostgreSQL's tools.
        raise errors.BadRequest(
            "a password does not belong behind the question mark; write it like "
            "postgresql://user:PASSWORD@host/updraft"
        )
    return text


def _conceal_database(value: str) -> str:
    parts = urlsplit(value)
    if parts.password is None:
        return value
    user, _, host = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"{user.partition(':')[0]}:{HIDDEN}@{host}").geturl()


def _uid_range(value: Any) -> UidRange:
    match = re.fullmatch(r"(\d{1,10})-(\d{1,10})", _text(value))
    if match is None or not _LEAST_UID <= int(match[1]) <= int(match[2]) <= _MAX_UID:
        raise errors.BadRequest(
            f"{value!r} is not a range of user ids of {_LEAST_UID} or above; write it like "
            "300000-365535"
        )
    return UidRange(int(match[1]), int(match[2]))


def choice(*words: str) -> Kind:
    """Return the type of keys that take one of some words."""

    def read(value: Any) -> str:
        if value not in words:
            raise errors.BadRequest(f"{value!r} is not one of {', '.join(words)}")
        return str(value)

    return Kind(" or ".join(f'"{word}"' for word in words), read)


def list_of(kind: Kind, name: str) -> Kind:
    """Return the type of keys that take a list of ``kind``; ours is a tuple."""

    def read(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise errors.BadRequest(f"{value!r} is no list; put it in brackets: [{value!r}]")
        return tuple(kind.read(item) for item in value)

    return Kind(f"list of {name}", read, lambda value: [kind.plain(item) for item in value])


def table_of(kind: Kind, name: str) -> Kind:
    """Return the type of keys that take a table of names and ``kind``."""

    def read(value: Any) -> Mapping[str, Any]:
        if not isinstance(value, dict):
            raise errors.BadRequest(f"{value!r} is no table; write it like {{ name = … }}")
        for key in value:
            if not re.fullmatch(r"[\w./-]{1,63}", key, re.ASCII):
                raise errors.BadRequest(
                    f"{key!r} is no name: use up to 63 letters, digits and . _ / -"
                )
        return MappingProxyType({key: kind.read(item) for key, item in value.items()})

    return Kind(
        f"table of {name}",
        read,
        lambda value: {key: kind.plain(item) for key, item in value.items()},
    )


DURATION = Kind("duration", _duration, _plain_duration)
SIZE = Kind("size", _size, _plain_size)
FLAG = Kind("true or false", _flag)
TEXT = Kind("text", _text)
INTEGER = Kind("whole number", _integer)
NUMBER = Kind("number", _number)
MONEY = Kind("amount of money", _money, str)
CPUS = Kind("number of CPUs", _cpus, _plain_cpus)
ADDRESS = Kind("HOST:PORT", _address, lambda value: "" if value is None else str(value))
PATH = Kind("path", _text, is_path=True)
SECRET_FILE = Kind("path of a file that holds the secret", _text, is_path=True)
URL = Kind("URL", _url, conceal=_conceal_url)
DATABASE = Kind("URL of a database", _database, conceal=_conceal_database)
UID_RANGE = Kind("FIRST-LAST", _uid_range, str)
NAMES = list_of(TEXT, "text")
