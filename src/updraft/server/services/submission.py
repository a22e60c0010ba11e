"""Checks a submission as a client sent it, and names the field and the mend when it is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from updraft import errors
from updraft.model.dependencies import MOST_EDGES, PAIRED, Edge, On
from updraft.model.job import (
    ID_LENGTH,
    MOST_BACKOFF_MS,
    MOST_TASKS,
    ONE_TASK,
    Command,
    Kind,
    Policy,
    Resources,
    RetryOn,
    Submission,
    Tasks,
    Terminal,
)
from updraft.model.ranges import Ranges

_MAX_ARGUMENT_BYTES = 8 << 20
_MAX_NAME = 200
_MAX_LABELS = 64
_MAX_RETRIES = 1000
_MAX_COUNT = (1 << 31) - 1  # a database's INTEGER
_MAX_BYTES = 1 << 60
_MAX_MS = 10 * 365 * 86_400_000
_MAX_NS = 1 << 62
_MAX_INDICES = 4 << 20


def parse_submission(body: Mapping[str, Any]) -> tuple[Submission, bytes]:
    """Return the submission and the environment block that came with it.

    Raises ``errors.BadRequest``.
    """
    command = Command(
        argv=_byte_list(body, "argv"),
        directory=_typed(body, "directory", bytes),
        umask=_typed(body, "umask", int) & 0o777,
        nice=_between(body, "nice", -40, 40),
        rlimits=_limits(body),
        ignored_signals=_numbers(body, "ignored_signals"),
        set_environment=_byte_list(body, "set_environment"),
        closed_fds=[fd for fd in (0, 1, 2) if fd in _numbers(body, "closed_fds", [])],
        one_output=body.get("one_output") is True,
        fenced=body.get("fenced") is True,
        fallback_directory=body.get("fallback_directory") is True,
        stdin=_typed(body, "stdin", bool),
        terminal=_terminal(body.get("tty")),
    )
    if not command.argv:
        raise errors.BadRequest("there is no command to run; give one, as in: urun hostname")
    if sum(map(len, command.argv)) > _MAX_ARGUMENT_BYTES:
        raise errors.BadRequest("the command line is longer than 8 MiB; pass the data by a file")
    if not command.directory.startswith(b"/") or b"\0" in command.directory:
        raise errors.BadRequest("directory must be an absolute path")
    submission = Submission(
        key=_typed(body, "key", bytes),
        command=command,
        attached=_typed(body, "attached", bool),
        resources=Resources(
            cpus_milli=_between(body, "cpus_milli", 0, _MAX_COUNT),
            memory_bytes=_between(body, "memory_bytes", 0, _MAX_BYTES),
            gpus=_between(body, "gpus", 0, _MAX_COUNT),
        ),
        policy=Policy(
            time_limit_ms=None
            if body.get("time_limit_ms") is None
            else _between(body, "time_limit_ms", 1, _MAX_MS),
            retries=min(_between(body, "retries", 0, _MAX_COUNT), _MAX_RETRIES),
            retry_on=_retry_on(body.get("retry_on")),
            backoff_ms=_maybe(body, "backoff_ms", 0, MOST_BACKOFF_MS) or 0,
            not_before_ns=_maybe(body, "not_before_ns", 0, _MAX_NS),
            deadline_ns=_maybe(body, "deadline_ns", 0, _MAX_NS),
            priority=_between(body, "priority", -_MAX_COUNT, _MAX_COUNT),
            keep_alive_ms=_between(body, "keep_alive_ms", 0, _MAX_MS),
            grace_ms=_between(body, "grace_ms", 0, _MAX_MS),
        ),
        name=_text(body, "name", _MAX_NAME),
        labels=_labels(body),
        pool=_text(body, "pool", _MAX_NAME),
        pipes=_pipes(body),
        source=None if body.get("source") is None else _text(body, "source", ID_LENGTH),
        tasks=_tasks(body.get("tasks")),
        after=parse_after(body.get("after")),
    )
    if submission.tasks.kind is not Kind.SINGLE and (command.stdin or command.terminal):
        raise errors.BadRequest("a job of several tasks has no input and no terminal; leave both")
    if not 8 <= len(submission.key) <= 64:
        raise errors.BadRequest("key must have 8 to 64 bytes")
    return submission, _typed(body, "environment", bytes)


def _typed(body: Mapping[str, Any], name: str, kind: type[Any]) -> Any:
    value = body.get(name)
    if type(value) is not kind:
        raise errors.BadRequest(f"{name} must be of type {kind.__name__}")
    return value


def _between(body: Mapping[str, Any], name: str, low: int, high: int) -> int:
    value: int = _typed(body, name, int)
    if not low <= value <= high:
        raise errors.BadRequest(f"{name} must be between {low} and {high}")
    return value


def _maybe(body: Mapping[str, Any], name: str, low: int, high: int) -> int | None:
    return None if body.get(name) is None else _between(body, name, low, high)


def _retry_on(value: Any) -> frozenset[RetryOn]:
    if value is None:
        return Policy().retry_on
    if type(value) is not list or not all(each in list(RetryOn) for each in value):
        known = ", ".join(RetryOn)
        raise errors.BadRequest(f"retry_on must be a list of some of: {known}")
    return frozenset(map(RetryOn, value))


def _tasks(value: Any) -> Tasks:
    if value is None:
        return ONE_TASK
    if type(value) is not dict or value.get("kind") not in list(Kind):
        raise errors.BadRequest(f"tasks must have a kind: {', '.join(Kind)}")
    count = _between(value, "count", 1, MOST_TASKS)
    indices = value.get("indices")
    if indices is not None:
        indices = _indices(indices, count)
    most = _maybe(value, "max_parallel", 1, _MAX_COUNT)
    return Tasks(Kind(value["kind"]), count, most, indices)


def parse_after(value: Any) -> tuple[Edge, ...]:
    """Return what a submission names that it is to run after.  Raises ``errors.BadRequest``."""
    if value is None:
        return ()
    if type(value) is not list or len(value) > MOST_EDGES:
        raise errors.BadRequest(f"after must be a list of at most {MOST_EDGES} jobs")
    return tuple(map(_edge, value))


def _edge(value: Any) -> Edge:
    if type(value) is not dict or value.get("on") not in list(On):
        raise errors.BadRequest(f"after must have dicts with job, task and on: {', '.join(On)}")
    task = value.get("task")
    if task is not None and task != PAIRED:
        task = _between(value, "task", 0, MOST_TASKS)
    return Edge(_text(value, "job", ID_LENGTH), On(value["on"]), task)


def _indices(value: Any, count: int) -> str:
    if type(value) is not str or len(value) > _MAX_INDICES:
        raise errors.BadRequest("indices must be a text like 0-16,18")
    chosen = Ranges.parse(value)
    if not chosen or max(stop for _, stop in chosen.spans()) > count:
        raise errors.BadRequest(f"indices must be between 0 and {count - 1}")
    return str(chosen)


def _text(body: Mapping[str, Any], name: str, length: int) -> str:
    value: str = _typed(body, name, str)
    if len(value) > length or not value.isprintable():
        raise errors.BadRequest(f"{name} must be printable and at most {length} characters long")
    return value


def _numbers(body: Mapping[str, Any], name: str, default: Any = None) -> list[int]:
    values = body.get(name, default)
    if type(values) is not list or not all(map(_is_integer, values)):
        raise errors.BadRequest(f"{name} must be a list of integers")
    return values


def _limits(body: Mapping[str, Any]) -> list[list[int]]:
    limits: list[list[int]] = _typed(body, "rlimits", list)
    for limit in limits:
        if type(limit) is not list or len(limit) != 3 or not all(map(_is_integer, limit)):
            raise errors.BadRequest("rlimits must be a list of [number, soft, hard]")
    return limits


def _is_integer(value: Any) -> bool:
    return type(value) is int and -(1 << 63) <= value < 1 << 63


def _byte_list(body: Mapping[str, Any], name: str) -> list[bytes]:
    values: list[bytes] = _typed(body, name, list)
    if any(type(value) is not bytes or b"\0" in value for value in values):
        raise errors.BadRequest(f"{name} must be a list of byte strings without NUL")
    return values


def _pipes(body: Mapping[str, Any]) -> tuple[str, str]:
    match body.get("pipes", ["", ""]):
        case [str(read), str(written)] if len(read + written) < 100:
            if (read + written).isprintable():
                return read, written
    raise errors.BadRequest("pipes must be a list of two short texts")


def _labels(body: Mapping[str, Any]) -> dict[str, str]:
    labels: dict[str, str] = _typed(body, "labels", dict)
    check_labels(labels)
    return labels


def check_labels(labels: Mapping[str, str]) -> None:
    """Let a job's labels pass.  Raises ``errors.BadRequest``."""
    for key, value in labels.items():
        printable = type(value) is str and (str(key) + value).isprintable()
        if not key or '"' in key or not printable:
            raise errors.BadRequest(f"label {key!r} must be KEY=VALUE, printable, without quotes")
    if len(labels) > _MAX_LABELS:
        raise errors.BadRequest(f"a job has at most {_MAX_LABELS} labels")


def _terminal(value: Any) -> Terminal | None:
    if value is None:
        return None
    if type(value) is not dict:
        raise errors.BadRequest("tty must be a dict or nothing")
    rows, columns = _typed(value, "rows", int), _typed(value, "columns", int)
    if not (0 <= rows < 1 << 16 and 0 <= columns < 1 << 16):
        raise errors.BadRequest("tty rows and columns must be below 65536")
    return Terminal(rows, columns, _attributes(value), _typed(value, "stderr", bool))


def _attributes(body: Mapping[str, Any]) -> list[Any] | None:
    """Return a terminal's modes and control characters, as ``termios.tcgetattr`` gives them."""
    value: list[Any] | None = body.get("attributes")
    match value:
        case None:
            return None
        case [*modes, [*signs]] if len(modes) == 6 and all(map(_is_integer, modes)):
            if all(type(sign) is bytes or _is_integer(sign) for sign in signs):
                return value
    raise errors.BadRequest("tty attributes must be those of a terminal, or nothing")
