"""``updraft flow show``."""

from __future__ import annotations

import click

from updraft.cli import options
from updraft.cli.output import flow, json


@click.command
@click.argument("flow_id", metavar="ID")
@click.option("-f", "--follow", is_flag=True, help="Stay, and show what happens to its end.")
@options.project
@options.as_json
def command(flow_id: str, follow: bool, project: str | None, as_json: bool) -> int:
    """Show the steps of a flow as a tree, each below the first that it needs.

    With -f the exit code is 0 when all steps ended ok, else 1; with --json, -f waits for the end.
    """
    from updraft.sdk import flows  # noqa: PLC0415

    with options.client(project=project) as client:
        if follow:
            return flow.follow_to_end(client, flow_id, as_json=as_json)
        state = flows.look(client, flow_id)
    if as_json:
        json.show(state.plain())
    else:
        flow.show(state)
    return 0
