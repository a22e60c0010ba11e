"""``updraft job list``."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from updraft.cli import options
from updraft.cli.output import json, speech, table, text
from updraft.model.states import TERMINAL, State

if TYPE_CHECKING:
    from updraft.wire.schemas import JobSummary

_HEADERS = ("ID", "STATE", "OK", "EXIT", "AGE", "TIME", "NAME", "COMMAND", "REASON")
_LIVE = tuple(state for state in State if state not in TERMINAL)
_COMMAND_WIDTH, _NAME_WIDTH = 40, 24


def _label(value: str) -> tuple[str, str]:
    key, equals, content = value.partition("=")
    if not key or not equals:
        raise click.BadParameter(f"{value!r} is no label; write it as KEY=VALUE")
    return key, content


@click.command
@click.option("-a", "--all", "every", is_flag=True, help="Also jobs that have ended.")
@click.option(
    "--state",
    "states",
    multiple=True,
    metavar="STATE",
    type=click.Choice([str(state) for state in State], case_sensitive=False),
    help="Only jobs in this state; repeatable.",
)
@click.option("--failed", is_flag=True, help="Only jobs that ended without being ok.")
@click.option(
    "-l",
    "--label",
    "labels",
    multiple=True,
    metavar="KEY=VALUE",
    type=_label,
    help="Only jobs with this label; several must all hold.",
)
@click.option(
    "--limit",
    default=50,
    show_default=True,
    metavar="N",
    type=click.IntRange(min=1),
    help="Show at most N, the newest.",
)
@click.option("--parent", metavar="ID", help="Only jobs that this one submitted.")
@click.option("--everyone", is_flag=True, help="Everybody's in the project, and not only yours.")
@options.project
@options.as_json
def command(
    every: bool,
    states: tuple[str, ...],
    failed: bool,
    labels: tuple[tuple[str, str], ...],
    limit: int,
    parent: str | None,
    everyone: bool,
    project: str | None,
    as_json: bool,
) -> None:
    """List jobs, newest first: those that have not ended, unless told otherwise.

    OK tells how the command fared: yes is state SUCCESS with exit code 0.
    """
    chosen = tuple(State(state) for state in states)
    if not chosen and not every and not failed:
        chosen = _LIVE
    with options.client(project=project) as client:
        found = client.jobs(
            states=chosen,
            failed=failed,
            labels=dict(labels),
            owner=None if everyone else "~",
            parent=parent,
            limit=limit + 1,  # one more than is shown tells whether there are more
        )
        jobs = list(found)
    if as_json:
        json.show(jobs[:limit])
    elif jobs:
        headers: tuple[str, ...] = _HEADERS
        rows = [_row(job) for job in jobs[:limit]]
        if everyone:
            headers = ("ID", "OWNER", *_HEADERS[1:])
            rows = [(row[0], job.owner, *row[1:]) for row, job in zip(rows, jobs, strict=False)]
        table.show(headers, rows)
    elif chosen == _LIVE and not states:
        speech.say("no job is queued or running; see: updraft job list --all")
    else:
        speech.say("no job matches")
    if len(jobs) > limit:
        speech.say(f"there are more than {limit}; raise --limit to see them")


def _row(job: JobSummary) -> tuple[str, ...]:
    now = datetime.now(UTC)
    started = job.times.started
    ran = None if started is None else ((job.times.ended or now) - started).total_seconds()
    return (
        job.id,
        str(job.state),
        text.yes_no(job.ok),
        "-" if job.exit_code is None else str(job.exit_code),
        text.duration((now - job.times.submitted).total_seconds()),
        "-" if ran is None else text.duration(ran),
        text.cut(text.printable(job.name), _NAME_WIDTH) or "-",
        text.command(job.command, _COMMAND_WIDTH),
        text.printable(job.reason or "-"),
    )
