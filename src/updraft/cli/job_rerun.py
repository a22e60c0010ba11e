"""``updraft job rerun``."""

from __future__ import annotations

import base64
import secrets
import sys

import click

from updraft.cli import options
from updraft.cli.output import json


@click.command
@options.job_id
@click.option("--failed", is_flag=True, help="Of an array, only the tasks that are not ok.")
@options.as_json
def command(job_id: str, failed: bool, as_json: bool) -> None:
    """Run a job's command again, detached, as a new job; print its id.

    Command, directory, resources and what -e had set are the job's; the rest of the environment is
    yours of now.
    """
    from updraft.sdk.submission import environment_block  # noqa: PLC0415
    from updraft.wire.schemas import RerunRequest  # noqa: PLC0415

    environment = base64.b64encode(environment_block([])).decode()
    request = RerunRequest(key=secrets.token_hex(16), failed=failed, environment_base64=environment)
    with options.client() as client:
        job = client.rerun(job_id, request)
    if as_json:
        json.show(job)
    else:
        sys.stdout.write(f"{job.id}\n")
