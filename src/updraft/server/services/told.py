"""What runners tell of attempts, checked: a runner is another's machine, and may say anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from updraft.wire.packing import PackingError

_MOST = (1 << 63) - 1  # a database's BIGINT
_LONGEST_TEXT = 1000

_NUMBERS = (
    *("status", "errno", "at", "stdout", "stderr"),
    *("cpu_ns", "peak_memory_bytes", "read_bytes", "written_bytes"),
)
_TEXTS = ("refused", "message", "lost", "why", "out_of_memory")


def started(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the report of a start, which has ``pid`` and ``at``.  Raises ``PackingError``."""
    return {**body, "pid": _number(body, "pid"), "at": _number(body, "at")}


def ended(body: Any) -> dict[str, Any]:
    """Return the report of an end with what is used of it.  Raises ``PackingError``."""
    if type(body) is not dict:
        raise PackingError("an end that is none")
    end: dict[str, Any] = {
        name: _number(body, name) for name in _NUMBERS if body.get(name) is not None
    }
    for name in _TEXTS:
        value = body.get(name)
        if type(value) is str:
            end[name] = _shown(value)
        elif value is True and name == "out_of_memory":
            end[name] = value
        elif value is not None and value is not False:
            raise PackingError(f"an end whose {name} is no text")
    whole = "lost" in end or "status" in end or {"refused", "errno", "message"} <= end.keys()
    if not whole or ("stdout" in end) is not ("stderr" in end):
        raise PackingError("an end that does not say how it was")
    return end


def attempts(reports: Any) -> list[dict[str, Any]]:
    """Return what a runner holds, an attempt each.  Raises ``PackingError``."""
    if type(reports) is not list or any(type(report) is not dict for report in reports):
        raise PackingError("attempts that are no list of reports")
    return [_attempt(report) for report in reports]


def _attempt(report: dict[str, Any]) -> dict[str, Any]:
    checked = {**report, "attempt": _number(report, "attempt")}
    if report.get("pid") is not None:
        checked = started(checked)
    if report.get("end") is not None:
        checked["end"] = ended(report["end"])
    return checked


def _number(body: Mapping[str, Any], name: str) -> int:
    value = body.get(name)
    if type(value) is not int or not 0 <= value <= _MOST:
        raise PackingError(f"{name} is no number that can be stored")
    return value


def _shown(text: str) -> str:
    """Return a runner's text as it may be stored and shown."""
    return "".join(sign if sign.isprintable() else "?" for sign in text[:_LONGEST_TEXT])
