"""``updraft job watch``."""

from __future__ import annotations

import sys

import click

from updraft.cli import options
from updraft.cli.output import json, text


@click.command
@options.job_id
@options.as_json
def command(job_id: str, as_json: bool) -> None:
    """Show a job's state changes, old ones and new ones, to its end.

    With --json one object a line.
    """
    with options.client() as client:
        for event in client.events(job_id):
            if as_json:
                json.show_line(event)
                continue
            message = text.printable(event.message)
            sys.stdout.write(f"{text.clock(event.at)}  {event.kind:<9}  {message}\n")
            sys.stdout.flush()
