"""``updraft logs``."""

from __future__ import annotations

import os
import select
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import click

from updraft import errors, quantities
from updraft.cli import options
from updraft.cli.output import speech

if TYPE_CHECKING:
    from updraft.sdk.client import LogPiece

_MAX_TAIL = 1_000_000
_LONGEST_LINE = 65536


def _moment(value: str) -> datetime:
    """Read a time, or how long ago it was."""
    try:
        return datetime.fromisoformat(value).astimezone()
    except (ValueError, OverflowError, OSError):
        pass
    try:
        return datetime.now(UTC) - timedelta(seconds=quantities.parse_duration(value))
    except errors.BadRequest as error:
        raise click.BadParameter(
            f"{value!r} is no time; write it like 10m (ago) or 2026-01-31T12:00"
        ) from error


@click.command
@options.task_id
@click.option("--prefix", is_flag=True, help="Begin each line with its task's index.")
@click.option("-f", "--follow", is_flag=True, help="Go on until the job has ended.")
@click.option("--stdout", is_flag=True, help="Only stdout.")
@click.option("--stderr", is_flag=True, help="Only stderr.")
@click.option(
    "-n", "--tail", metavar="N", type=click.IntRange(0, _MAX_TAIL), help="Only the last N lines."
)
@click.option(
    "--since",
    metavar="TIME",
    type=_moment,
    help="Only what was written since then: 10m (ago), or a time as 2026-01-31T12:00.",
)
def command(
    job_id: tuple[str, int | None],
    prefix: bool,
    follow: bool,
    stdout: bool,
    stderr: bool,
    tail: int | None,
    since: datetime | None,
) -> None:
    """Show what a job wrote: its stdout on stdout, its stderr on stderr.

    The last attempt's, and with -f also that of those that follow.  Ctrl-C leaves the job alone.
    Of an array all tasks', or with ID/INDEX that of one.
    """
    job_name, index = job_id
    chosen = [name for name, wanted in (("stdout", stdout), ("stderr", stderr)) if wanted]
    with options.client() as client:
        pieces = client.logs(
            job_name,
            task=index,
            streams=chosen,
            tail=tail,
            since=since,
            follow=follow,
        )
        if not show(pieces, "updraft", prefix=prefix):
            job = client.job(job_name)
            if index is not None and job.times.started is not None:
                if not client.task(job.id, index):
                    speech.say(f"task {job.id}/{index} has not started")
            elif not job.attempts and job.times.started is None:
                speech.say(f"job {job.id} has not started: {job.reason}")


def show(pieces: Iterable[LogPiece], program: str, *, prefix: bool = False) -> bool:
    """Write output to stdout and stderr; return whether there was an attempt to show.

    ``prefix``: each line begins with the index of its task, in brackets.  Raises
    ``BrokenPipeError`` when nobody reads it.
    """
    from updraft.sdk.client import AttemptBegins, Cut, Output  # noqa: PLC0415 - loaded by now

    begun = False
    lines = Lines() if prefix else None
    for piece in pieces:
        match piece:
            case Output(stream=stream, data=data, task=task) if lines is not None:
                _write_all(stream, lines.complete(task or 0, stream, bytes(data)))
            case Output(stream=stream, data=data):
                _write_all(stream, data)
            case Cut(count=count):
                speech.say(f"{count} bytes are not stored: the stream was over its quota", program)
            case AttemptBegins(task=int(task), attempt=number):
                if number > 1:
                    speech.say(f"task {task}: attempt {number} begins", program)
                begun = True
            case AttemptBegins(attempt=number):
                if begun:
                    speech.say(f"attempt {number} begins", program)
                begun = True
    if lines is not None:
        for stream, rest in lines.rest():
            _write_all(stream, rest)
    return begun


class Lines:
    """Makes whole lines of what several tasks write, each with its task's index before it."""

    def __init__(self) -> None:
        self._begun: dict[tuple[int, int], bytes] = {}

    def complete(self, task: int, stream: int, data: bytes) -> bytes:
        """Return the lines that are whole with this; the rest of a line is held."""
        *lines, rest = (self._begun.pop((task, stream), b"") + data).split(b"\n")
        if len(rest) >= _LONGEST_LINE:
            lines, rest = [*lines, rest], b""
        if rest:
            self._begun[task, stream] = rest
        return b"".join(b"[%d] %b\n" % (task, line) for line in lines)

    def rest(self) -> Iterator[tuple[int, bytes]]:
        """Yield the lines that were never ended, by stream."""
        for (task, stream), line in sorted(self._begun.items()):
            yield stream, b"[%d] %b\n" % (task, line)


def _write_all(fd: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:  # somebody made it non-blocking: wait as if it were not
            select.select([], [fd], [])
