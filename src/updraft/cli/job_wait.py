"""``updraft job wait``."""

from __future__ import annotations

import click

from updraft.cli import exit_codes, options
from updraft.cli.output import json, speech


@click.command
@options.whole_job_ids
@options.as_json
@options.exits_as_its_job
def command(job_ids: tuple[str, ...], as_json: bool) -> int:
    """Wait until all these jobs have ended, and exit with their exit code.

    With several jobs: 0 when all are ok, else the code of the first that is not.
    """
    with options.client() as client:
        full = [client.job(job_id).id for job_id in job_ids]  # all must be there before we wait
        jobs = [client.wait(job_id) for job_id in full]
    if as_json:
        json.show(jobs)
    for job in jobs:
        if str(job.state) != "SUCCESS":
            speech.say(f"job {job.id} ended as {job.state}: {job.reason}")
    codes = [exit_codes.of_job(str(job.state), job.exit_code) for job in jobs]
    return next((code for code in codes if code), 0)
