"""Options and arguments that several commands have."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

import click

from updraft import errors, quantities
from updraft.cli.output import speech

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from updraft.sdk.client import Client

Callback = Callable[..., Any]

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
config_file = click.option(
    "--config",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, readable=True),
    help="Read this configuration instead of the usual one.",
)


def duration(value: str) -> float:
    """Read ``90s``, ``15m``, ``2h`` …, as seconds; a type of options and arguments."""
    try:
        return quantities.parse_duration(value)
    except errors.BadRequest as error:
        raise click.BadParameter(error.message) from error


project = click.option(
    "--project", metavar="PROJECT", help="Ask about this project, and not about your own."
)


def client(*, start: bool = True, project: str | None = None) -> Client:
    """Return a client; ``start``: a server that is not there is started, which is said."""
    # httpx would load a program of its own, with rich's progress bars: a quarter of a short
    # command's time. It does without where that cannot be imported.
    sys.modules.setdefault("httpx._main", cast(ModuleType, None))
    from updraft.sdk.client import Client  # noqa: PLC0415 - after the command line is known good
    from updraft.sdk.ways import find_way  # noqa: PLC0415

    way = find_way(speech.say, start=start)
    say = speech.say if sys.stderr.isatty() else None
    return Client(way, start=start, project=project, say=say)


def _complete_jobs(
    _context: click.Context, _parameter: click.Parameter, beginning: str
) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem  # noqa: PLC0415

    try:
        with client(start=False) as asked:
            found = list(asked.jobs(limit=100))
    except errors.UpdraftError:
        return []
    return [
        CompletionItem(job.id, help=job.name or " ".join(job.command)[:40])
        for job in found
        if job.id.startswith(beginning)
    ]


def _whole(
    _context: click.Context, _parameter: click.Parameter, value: str | tuple[str, ...]
) -> str | tuple[str, ...]:
    for each in (value,) if isinstance(value, str) else value:
        job, slash, _ = each.partition("/")
        if slash:
            raise click.BadParameter(f"{each!r} is one task; this is of whole jobs, as {job}")
    return value


job_id = click.argument("job_id", metavar="ID", shell_complete=_complete_jobs, callback=_whole)
whole_job_ids = click.argument(
    "job_ids",
    metavar="ID…",
    nargs=-1,
    required=True,
    shell_complete=_complete_jobs,
    callback=_whole,
)
job_ids = click.argument(
    "job_ids", metavar="ID[/INDEX]…", nargs=-1, required=True, shell_complete=_complete_jobs
)


def _task(
    _context: click.Context, _parameter: click.Parameter, value: str
) -> tuple[str, int | None]:
    return split_task(value)


def split_task(value: str) -> tuple[str, int | None]:
    """Return the job and the index of ``ID/INDEX``; of ``ID`` alone no index."""
    job, slash, index = value.partition("/")
    if not slash:
        return job, None
    if not (index.isascii() and index.isdecimal() and len(index) < 9):
        raise click.BadParameter(f"{value!r}: write a task of an array as ID/INDEX, as {job}/17")
    return job, int(index)


task_id = click.argument(
    "job_id", metavar="ID[/INDEX]", shell_complete=_complete_jobs, callback=_task
)


def exits_as_its_job(callback: Callback) -> Callback:
    """Let Updraft's own failures exit with 125: any lower code could be the command's."""

    @functools.wraps(callback)
    def guarded(*arguments: Any, **options: Any) -> Any:
        try:
            return callback(*arguments, **options)
        except errors.UpdraftError as error:
            speech.say(error.message)
            return error.exit_code

    return guarded
