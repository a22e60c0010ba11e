"""``updraft flow cancel``."""

from __future__ import annotations

import click

from updraft.cli import options
from updraft.cli.output import speech


@click.command
@click.argument("flow_id", metavar="ID")
@options.project
def command(flow_id: str, project: str | None) -> None:
    """Cancel all steps of a flow that have not ended."""
    from updraft.sdk import flows  # noqa: PLC0415

    with options.client(project=project) as client:
        count = flows.cancel(client, flow_id)
    steps = "step is" if count == 1 else "steps are"
    speech.say(f"{count} {steps} being cancelled" if count else f"flow {flow_id} has ended")
