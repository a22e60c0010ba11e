"""Checks a submission as a client sent it, and names the field and the mend when it is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from updraft import errors
from updraft.model.job import Command, Policy, Resources, Submission, Terminal

_MAX_ARGUMENT_BYTES = 8 << 20
_MAX_NAME = 200
_MAX_LABELS = 64
_MAX_RETRIES = 1000


def parse_submission(body: Mapping[str, Any]) -> tuple[Submission, bytes]:
    """Return the submission and the environment block that came with it.

    Raises ``errors.BadRequest``.
    """
    command = Command(
        argv=_byte_list(body, "argv"),
        directory=_typed(body, "directory", bytes),
        umask=_typed(body, "umask", int) & 0o777,
        nice=_typed(body, "nice", int),
        rlimits=_typed(body, "rlimits", list),
        ignored_signals=_typed(body, "ignored_signals", list),
        set_environment=_byte_list(body, "set_environment"),
        closed_fds=[fd for fd in (0, 1, 2) if fd in body.get("closed_fds", ())],
        one_output=body.get("one_output") is True,
        stdin=_typed(body, "stdin", bool),
        terminal=_terminal(body.get("tty")),
    )
    if not command.argv:
        raise errors.BadRequest("there is no command to run; give one, as in: urun hostname")
    if sum(map(len, command.argv)) > _MAX_ARGUMENT_BYTES:
        raise errors.BadRequest("the command line is longer than 8 MiB; pass the data by a file")
    if not command.directory.startswith(b"/"):
        raise errors.BadRequest("directory must be an absolute path")
    submission = Submission(
        key=_typed(body, "key", bytes),
        command=command,
        attached=_typed(body, "attached", bool),
        resources=Resources(
            cpus_milli=_at_least(body, "cpus_milli", 0),
            memory_bytes=_at_least(body, "memory_bytes", 0),
            gpus=_at_least(body, "gpus", 0),
        ),
        policy=Policy(
            time_limit_ms=_optional_positive(body, "time_limit_ms"),
            retries=min(_at_least(body, "retries", 0), _MAX_RETRIES),
            priority=_typed(body, "priority", int),
            keep_alive_ms=_at_least(body, "keep_alive_ms", 0),
            grace_ms=_at_least(body, "grace_ms", 0),
        ),
        name=_typed(body, "name", str),
        labels=_labels(body),
        pool=_typed(body, "pool", str),
        pipes=_pipes(body),
        source=body.get("source"),
    )
    if not 8 <= len(submission.key) <= 64:
        raise errors.BadRequest("key must have 8 to 64 bytes")
    if len(submission.name) > _MAX_NAME or not submission.name.isprintable():
        raise errors.BadRequest(f"name must be printable and at most {_MAX_NAME} characters long")
    return submission, _typed(body, "environment", bytes)


def _typed(body: Mapping[str, Any], name: str, kind: type[Any]) -> Any:
    value = body.get(name)
    if type(value) is not kind:
        raise errors.BadRequest(f"{name} must be of type {kind.__name__}")
    return value


def _at_least(body: Mapping[str, Any], name: str, low: int) -> int:
    value: int = _typed(body, name, int)
    if not low <= value < 1 << 62:
        raise errors.BadRequest(f"{name} must be {low} or more")
    return value


def _optional_positive(body: Mapping[str, Any], name: str) -> int | None:
    return None if body.get(name) is None else _at_least(body, name, 1)


def _byte_list(body: Mapping[str, Any], name: str) -> list[bytes]:
    values: list[bytes] = _typed(body, name, list)
    if any(type(value) is not bytes or b"\0" in value for value in values):
        raise errors.BadRequest(f"{name} must be a list of byte strings without NUL")
    return values


def _pipes(body: Mapping[str, Any]) -> tuple[str, str]:
    match body.get("pipes", ["", ""]):
        case [str(read), str(written)] if len(read) + len(written) < 100:
            return read, written
    raise errors.BadRequest("pipes must be a list of two short texts")


def _labels(body: Mapping[str, Any]) -> dict[str, str]:
    labels: dict[str, str] = _typed(body, "labels", dict)
    for key, value in labels.items():
        if not key or '"' in key or not key.isprintable() or type(value) is not str:
            raise errors.BadRequest(f"label {key!r} must be KEY=VALUE, printable, without quotes")
    if len(labels) > _MAX_LABELS:
        raise errors.BadRequest(f"a job has at most {_MAX_LABELS} labels")
    return labels


def _terminal(value: Any) -> Terminal | None:
    if value is None:
        return None
    if type(value) is not dict:
        raise errors.BadRequest("tty must be a dict or nothing")
    rows, columns = _typed(value, "rows", int), _typed(value, "columns", int)
    if not (0 <= rows < 1 << 16 and 0 <= columns < 1 << 16):
        raise errors.BadRequest("tty rows and columns must be below 65536")
    return Terminal(rows, columns, value.get("attributes"), _typed(value, "stderr", bool))
