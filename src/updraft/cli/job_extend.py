"""``updraft job extend``."""

from __future__ import annotations

import click

from updraft.cli import options
from updraft.cli.output import json, speech, text


@click.command
@options.job_id
@click.argument("more", metavar="TIME", type=options.duration)
@options.as_json
def command(job_id: str, more: float, as_json: bool) -> None:
    """Add TIME, as 30m or 2h, to the time limit of a job that has not ended."""
    with options.client() as client:
        job = client.extend(job_id, more)
    if as_json:
        json.show(job)
    limit = text.duration(job.time_limit_seconds or 0)
    speech.say(f"job {job.id} now has {limit}, counted from its start")
