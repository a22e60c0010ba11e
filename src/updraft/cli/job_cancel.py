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

    Returns once the request is stored; to wait for the end: updraft job wait.  One task of an
    array: ID/INDEX.
    """
    jobs: list[tuple[Job, int | None]] = []
    chosen = [options.split_task(each) for each in job_ids]  # all must be right before one ends
    code = exit_codes.OK
    with options.client(project=project) as client:
        for job_id, index in chosen:
            try:
                if index is None:
                    jobs.append((client.cancel(job_id), None))
                else:
                    jobs.append((client.cancel_task(job_id, index), index))
            except _REFUSALS as error:
                speech.say(error.message)  # the others are cancelled all the same
                code = exit_codes.FAILED_REQUEST
    if as_json:
        json.show([job for job, _ in jobs])
    for job, index in jobs:
        if index is not None:
            speech.say(f"task {job.id}/{index} is being cancelled")
            continue
        done = "was cancelled" if job.state.terminal else "is being cancelled"
        speech.say(f"job {job.id} {done}")
    return code
