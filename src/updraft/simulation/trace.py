"""Traces: which jobs come when, as CSV or JSON, and how they are read and written."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from updraft import errors

_MOST_TASKS = 10_000_000
_TRUE, _FALSE = frozenset({"true", "1", "yes"}), frozenset({"false", "0", "no", ""})


@dataclass(frozen=True, slots=True)
class TraceJob:
    """One job of a trace: a row."""

    submit_s: float
    user: str
    duration_s: float
    """Of each of its tasks."""
    project: str = "default"
    cpus: float = 1.0
    """Of each task, as the memory and the GPUs."""
    memory_bytes: int = 0
    gpus: int = 0
    time_limit_s: float | None = None
    """None (an empty cell): without limit."""
    tasks: int = 1
    gang: bool = False
    """Whether its tasks are ranks, which start together or not at all."""
    priority: int = 0
    preemptible: bool = False


COLUMNS = (
    *("submit_s", "user", "project", "cpus", "memory_bytes", "gpus", "duration_s"),
    *("time_limit_s", "tasks", "gang", "priority", "preemptible"),
)
_NEEDED = ("submit_s", "user", "duration_s")


def parse(text: str, name: str) -> list[TraceJob]:
    """Return a trace's jobs by the time at which they come; ``name`` is said in errors.

    JSON is a list of objects, CSV has a line with the names of its columns.  Raises
    ``errors.BadRequest``, naming the line (of JSON: the job, from 1) and the column.
    """
    rows = _json_rows(text, name) if text.lstrip()[:1] in ("[", "{") else _csv_rows(text, name)
    jobs = [_job(row, where) for where, row in rows]
    if not jobs:
        raise errors.BadRequest(f"{name} has no jobs; write one a line below the names of columns")
    return sorted(jobs, key=lambda job: job.submit_s)


def write(jobs: Iterable[TraceJob]) -> Iterator[str]:
    """Yield a trace as lines of CSV."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for job in jobs:
        writer.writerow(_cell(getattr(job, column)) for column in COLUMNS)
        if buffer.tell() > 1 << 16:
            yield buffer.getvalue()
            buffer.seek(0)
            buffer.truncate()
    yield buffer.getvalue()


def _cell(value: Any) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case float():
            return f"{value:.10g}"
    return str(value)


def _csv_rows(text: str, name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    reader = csv.reader(io.StringIO(text))
    try:
        header = [each.strip() for each in next(reader, [])]
        _check_columns(header, f"{name}, line 1")
        for row in reader:
            if not row:
                continue
            where = f"{name}, line {reader.line_num}"
            if len(row) != len(header):
                raise errors.BadRequest(
                    f"{where}: there are {len(row)} cells for {len(header)} columns; write one for "
                    "each"
                )
            yield where, {key: cell.strip() for key, cell in zip(header, row, strict=True)}
    except csv.Error as error:
        raise errors.BadRequest(
            f"{name}, line {reader.line_num}: this is no CSV ({error}); write cells with commas"
        ) from error


def _json_rows(text: str, name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise errors.BadRequest(f"{name} is no JSON: {error}; write a list of objects") from error
    if not isinstance(found, list):
        raise errors.BadRequest(f"{name}: the trace is no list; write [{{…}}, …]")
    for number, row in enumerate(found, 1):
        where = f"{name}, job {number}"
        if not isinstance(row, dict):
            raise errors.BadRequest(f'{where}: this is no object; write {{"submit_s": 0, …}}')
        _check_columns(row, where)
        yield where, row


def _check_columns(header: Iterable[str], where: str) -> None:
    names = list(header)
    for column in names:
        if column not in COLUMNS:
            raise errors.BadRequest(
                f"{where}: there is no column {column!r}; the columns are: {', '.join(COLUMNS)}"
            )
        if names.count(column) > 1:
            raise errors.BadRequest(f"{where}: column {column!r} is there twice; leave one out")
    for column in _NEEDED:
        if column not in names:
            raise errors.BadRequest(f"{where}: column {column!r} is missing; add it")


def _job(row: Mapping[str, Any], where: str) -> TraceJob:
    values: dict[str, Any] = {}
    for field in fields(TraceJob):
        cell = row.get(field.name)
        if cell in (None, "") and field.name not in _NEEDED:
            continue  # as it is by default
        read, rule = _CELLS[field.name]
        try:
            values[field.name] = read(cell)
        except (ValueError, TypeError, OverflowError):
            raise errors.BadRequest(f"{where}: {field.name}: {cell!r} is no {rule}") from None
    job = TraceJob(**values)
    if job.gang and job.tasks < 2:
        raise errors.BadRequest(f"{where}: gang: a gang has at least 2 tasks; raise tasks")
    return job


def _number(least: float, most: float = math.inf) -> Callable[[Any], float]:
    def read(cell: Any) -> float:
        if isinstance(cell, bool):
            raise TypeError
        value = float(cell)
        if not (math.isfinite(value) and least <= value <= most):
            raise ValueError
        return value

    return read


def _whole(least: int, most: int) -> Callable[[Any], int]:
    def read(cell: Any) -> int:
        value = _number(least, most)(cell)
        if value != int(value):
            raise ValueError
        return int(value)

    return read


def _truth(cell: Any) -> bool:
    text = str(cell).lower()
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise ValueError


def _name(cell: Any) -> str:
    if not isinstance(cell, str) or not cell or not cell.isprintable():
        raise ValueError
    return cell


_CELLS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "submit_s": (_number(0), "number of seconds from 0; write it like 12.5"),
    "user": (_name, "name; write one like ann"),
    "project": (_name, "name; write one like lab"),
    "cpus": (_number(0, 1e6), "number of CPUs; write it like 2 or 0.5"),
    "memory_bytes": (_whole(0, 1 << 60), "number of bytes; write it like 1073741824"),
    "gpus": (_whole(0, 1024), "number of GPUs from 0 to 1024; write it like 2"),
    "duration_s": (_number(0), "number of seconds from 0; write it like 12.5"),
    "time_limit_s": (_number(0.001), "number of seconds above 0; leave it empty for no limit"),
    "tasks": (_whole(1, _MOST_TASKS), f"number from 1 to {_MOST_TASKS}; write it like 100"),
    "gang": (_truth, "truth; write true or false"),
    "priority": (_whole(-1000, 1000), "whole number from -1000 to 1000; write it like 0"),
    "preemptible": (_truth, "truth; write true or false"),
}
