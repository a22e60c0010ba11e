"""What an agent says of its runner and of attempts, checked: the server believes no shape blindly.

A runner is a machine of its own, and whoever has root there writes what it says.  So of each
message only the known fields go on, each with a value that can be stored, shown and counted with;
what a newer agent adds is passed over.  Whether it is about the runner's own attempts is for the
server to know.  Standard library only.
"""

from __future__ import annotations

from updraft.wire.packing import PackingError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    Check = Callable[[Any], bool]

MAX_LENGTH = 1 << 62
"""Of a stream: no task writes so much, and two of them still add up to 64 bits."""

MOST_IN_GROUP = 4096
"""How many starts or ends one message may tell."""

_MAX_TEXT = 16384
_MAX_ITEMS = 1024
_MAX_STATUS = 0xFFFF
_MAX_ERRNO = 4096
_MAX_SIGNAL = 64


def report_of(body: dict[str, Any]) -> dict[str, Any]:
    """Return a REPORT: what a runner has, and its attempts.  Raises ``PackingError``."""
    report = _checked("a report", body, _REPORT, _REPORT_NEEDED)
    report["capacity"] = _checked("capacity", report["capacity"], _CAPACITY, _CAPACITY_NEEDED)
    report["capacity"]["gpus"] = [
        _checked("a GPU", gpu, _GPU, _GPU_NEEDED) for gpu in report["capacity"]["gpus"]
    ]
    report["attempts"] = [_attempt(each) for each in report["attempts"]]
    return report


def started_of(body: dict[str, Any]) -> dict[str, Any]:
    """Return a STARTED.  Raises ``PackingError``."""
    return _checked("a start", body, _STARTED, needed=("pid", "at"))


def said_of(body: dict[str, Any]) -> dict[str, Any]:
    """Return a STOPPED or CONTINUED.  Raises ``PackingError``."""
    return _checked("a stop", body, _SAID)


def end_of(body: dict[str, Any]) -> dict[str, Any]:
    """Return an EXITED.  Raises ``PackingError``."""
    end = _checked("an end", body, _END, needed=("stdout", "stderr"))
    if "refused" in end:
        _need("a refusal", end, ("message", "errno"))
    elif "lost" not in end:
        _need("an end", end, ("status",))
    return end


def starts_of(body: dict[str, Any]) -> list[list[int]]:
    """Return the starts of STARTS: [attempt, pid, at].  Raises ``PackingError``."""
    starts: list[list[int]] = []
    for start in _group("starts", body):
        if type(start) is not list or len(start) != len(_START):
            raise PackingError("a start of a crew's is a list of an attempt, a pid and a time")
        for name, check, value in zip(_START_NAMES, _START, start, strict=True):
            if not check(value):
                raise PackingError(f"a start with a bad {name}")
        starts.append(start)
    return starts


def ends_of(body: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    """Return the ends of ENDS: (attempt, end).  Raises ``PackingError``."""
    ends: list[tuple[int, dict[str, Any]]] = []
    for each in _group("ends", body):
        if type(each) is not list or len(each) != 2:
            raise PackingError("an end of a crew's is a list of an attempt and how it ended")
        if not _is_serial(each[0]):
            raise PackingError("an end with a bad attempt")
        ends.append((each[0], _crew_end(each[1])))
    return ends


def length_of(offset: int, size: int = 0) -> int:
    """Return where bytes at a stream's offset end.  Raises ``PackingError`` where none can be."""
    if offset + size > MAX_LENGTH:
        raise PackingError("no stream is so long")
    return offset + size


def _attempt(body: Any) -> dict[str, Any]:
    attempt = _checked("an attempt", body, _ATTEMPT, needed=("attempt",))
    if attempt.get("pid") is not None:
        _need("an attempt that started", attempt, ("at",))
    is_crews = "crew" in attempt
    if is_crews:
        _need("an attempt of a crew", attempt, ("index", "number"))
    if attempt.get("end") is not None:
        attempt["end"] = _crew_end(attempt["end"]) if is_crews else end_of(attempt["end"])
    return attempt


def _crew_end(body: Any) -> dict[str, Any]:
    """Return how an attempt of a crew ended, which may not have started at all."""
    if type(body) is dict and "unstarted" in body:
        return _checked("an end", body, _UNSTARTED, needed=("stdout", "stderr"))
    end = end_of(body)
    return end | _checked("an end", body, _CREW_END)


def _group(name: str, body: dict[str, Any]) -> list[Any]:
    """Return what a message about many attempts lists."""
    _need("a message", body, (name,))
    group = body[name]
    if not _is_list(group) or len(group) > MOST_IN_GROUP:
        raise PackingError(f"{name} are a list of at most {MOST_IN_GROUP}")
    return list(group)


def _checked(
    what: str, body: Any, fields: Mapping[str, Check], needed: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Return the known fields of a body."""
    if type(body) is not dict:
        raise PackingError(f"{what} is a dict, not {type(body).__name__}")
    _need(what, body, needed)
    known = {name: value for name, value in body.items() if name in fields}
    for name, value in known.items():
        if not fields[name](value):
            raise PackingError(f"{what} with a bad {name}")
    return known


def _need(what: str, body: dict[str, Any], names: tuple[str, ...]) -> None:
    for name in names:
        if name not in body:
            raise PackingError(f"{what} without {name}")


def _is_number(most: int) -> Check:
    return lambda value: type(value) is int and 0 <= value <= most


def _is_text(value: Any) -> bool:
    # Databases take no NUL in text.
    return type(value) is str and len(value) <= _MAX_TEXT and "\0" not in value


def _is_list(value: Any) -> bool:
    return type(value) is list


def _is_integer(value: Any) -> bool:
    return type(value) is int and abs(value) < 1 << 63


def _is_dict(value: Any) -> bool:
    return type(value) is dict


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _list_of(check: Check) -> Check:
    return lambda value: _is_list(value) and len(value) <= _MAX_ITEMS and all(map(check, value))


_is_count = _is_number((1 << 63) - 1)
_is_length = _is_number(MAX_LENGTH)
_is_pid = _is_number((1 << 31) - 1)
_is_serial = _is_number((1 << 62) - 1)
"""Of an attempt or a crew: a channel has room for two bits more."""

_START: tuple[Check, ...] = (_is_serial, _is_pid, _is_count)
_START_NAMES = ("attempt", "pid", "time")

_GPU: dict[str, Check] = {
    "index": _is_pid,
    "minor": _is_pid,
    "uuid": _is_text,
    "kind": _is_text,
    "memory_bytes": _is_length,
}
_GPU_NEEDED = ("index", "uuid", "kind", "memory_bytes")
_CAPACITY: dict[str, Check] = {
    "cpus_milli": _is_pid,
    "memory_bytes": _is_length,
    "gpus": _list_of(_is_dict),
    "host": _is_text,
}
_CAPACITY_NEEDED = ("cpus_milli", "memory_bytes", "gpus")
_REPORT: dict[str, Check] = {
    "capacity": _is_dict,
    "attempts": _is_list,
    "keeper": _is_text,
    "keeper_pid": _is_pid,
    "pid": _is_pid,
    "release": _is_text,
    "keeper_release": _is_text,
    "upgrade": _is_dict,
}
_REPORT_NEEDED = (
    *("capacity", "attempts", "pid", "release"),
    *("keeper", "keeper_pid", "keeper_release"),
)
_STARTED: dict[str, Check] = {
    "pid": _is_pid,
    "at": _is_count,
    "clamped_limits": _list_of(_is_pid),
    "unenforced": _list_of(_is_text),
    "directory": lambda value: type(value) is bytes or _is_text(value),
}
_ATTEMPT: dict[str, Check] = {
    **_STARTED,
    "attempt": _is_count,
    "pid": _or_none(_is_pid),
    "at": _or_none(_is_count),
    "end": _or_none(_is_dict),
    "crew": _is_serial,
    "index": _is_pid,
    "number": _is_pid,
    "waiting": lambda value: type(value) is bool,
}
_SAID: dict[str, Check] = {
    "signal": _is_number(_MAX_SIGNAL),
    "stdout": _is_length,
    "stderr": _is_length,
}
_END: dict[str, Check] = {
    "status": _is_number(_MAX_STATUS),
    "at": _is_count,
    "lost": _is_text,
    "why": _or_none(_is_text),
    "refused": _is_text,
    "errno": _is_number(_MAX_ERRNO),
    "message": _is_text,
    "out_of_memory": lambda value: type(value) is bool or _is_text(value),
    "cpu_ns": _or_none(_is_integer),
    "peak_memory_bytes": _or_none(_is_integer),
    "read_bytes": _or_none(_is_integer),
    "written_bytes": _or_none(_is_integer),
    "stdout": _is_length,
    "stderr": _is_length,
}
_CREW_END: dict[str, Check] = {"started": _is_count, "pid": _or_none(_is_pid)}
_UNSTARTED: dict[str, Check] = {
    "unstarted": lambda value: value is True,
    "why": _or_none(_is_text),
    "at": _is_count,
    "stdout": _is_length,
    "stderr": _is_length,
}
