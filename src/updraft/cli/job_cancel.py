"""``updraft job cancel``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from updraft import errors
from updraft.cli import exit_codes, options
from updraft.cli.output import json, speech

if TYPE_CHECKING:
    from updraft.wire.schemas import Job


_REFUSALS = (errors.NotFound, errors.NotAllowed, errors.Conflict, errors.BadRequest)


@click.command
@options.job_ids
@options.project
@options.as_json
def command(job_ids: tuple[str, ...], project: str | None, as_json: bool) -> int:
    """End jobs: SIGTERM to all their processes, and after the grace SIGKILL.

    Returns once the request is stored; to wait for the end: updraft job wait.
    """
    jobs: list[Job] = []
    code = exit_codes.OK
    with options.client(project=project) as client:
        for job_id in job_ids:
            try:
                jobs.append(client.cancel(job_id))
            except _REFUSALS as error:
                speech.say(error.message)  # the others are cancelled all the same
                code = exit_codes.FAILED_REQUEST
    if as_json:
        json.show(jobs)
    for job in jobs:
        done = "was cancelled" if job.state.terminal else "is being cancelled"
        speech.say(f"job {job.id} {done}")
    return code
