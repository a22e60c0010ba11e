"""``updraft logs``."""

from __future__ import annotations

import os
import select
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import click

from updraft import errors, quantities
from updraft.cli import options
from updraft.cli.output import speech

if TYPE_CHECKING:
    from updraft.sdk.client import LogPiece

_MAX_TAIL = 1_000_000


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
@options.job_id
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
    job_id: str,
    follow: bool,
    stdout: bool,
    stderr: bool,
    tail: int | None,
    since: datetime | None,
) -> None:
    """Show what a job wrote: its stdout on stdout, its stderr on stderr.

    The last attempt's, and with -f also that of those that follow.  Ctrl-C leaves the job alone.
    """
    chosen = [name for name, wanted in (("stdout", stdout), ("stderr", stderr)) if wanted]
    with options.client() as client:
        pieces = client.logs(
            job_id,
            streams=chosen,
            tail=tail,
            since=since,
            follow=follow,
        )
        if not show(pieces, "updraft"):
            job = client.job(job_id)
            if not job.attempts:
                speech.say(f"job {job.id} has not started: {job.reason}")


def show(pieces: Iterable[LogPiece], program: str) -> bool:
    """Write output to stdout and stderr; return whether there was an attempt to show.

    Raises ``BrokenPipeError`` when nobody reads it.
    """
    from updraft.sdk.client import AttemptBegins, Cut, Output  # noqa: PLC0415 - loaded by now

    begun = False
    for piece in pieces:
        match piece:
            case Output(stream=stream, data=data):
                _write_all(stream, data)
            case Cut(count=count):
                speech.say(f"{count} bytes are not stored: the stream was over its quota", program)
            case AttemptBegins(attempt=number):
                if begun:
                    speech.say(f"attempt {number} begins", program)
                begun = True
    return begun


def _write_all(fd: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:  # somebody made it non-blocking: wait as if it were not
            select.select([], [fd], [])
