"""``updraft job retry``."""

from __future__ import annotations

import click

from updraft.cli import options
from updraft.cli.output import json, speech


@click.command
@options.task_id
@options.as_json
def command(job_id: tuple[str, int | None], as_json: bool) -> None:
    """Queue a task of an array anew that has ended, while the array goes on: ID/INDEX.

    Of one that has ended: updraft job rerun --failed.
    """
    name, index = job_id
    if index is None:
        raise click.UsageError(
            f"name one task, as {name}/17; of all that failed: updraft job rerun --failed {name}"
        )
    with options.client() as client:
        job = client.retry_task(name, index)
    if as_json:
        json.show(job)
    else:
        speech.say(f"task {job.id}/{index} is queued again")
