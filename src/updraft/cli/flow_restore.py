"""``updraft flow restore``."""

from __future__ import annotations

import click

from updraft.cli import options
from updraft.cli.output import flow


@click.command
@click.argument("flow_id", metavar="ID")
@click.option("-f", "--follow", is_flag=True, help="Stay, and show how the steps fare.")
@click.option("--id", "new_id", metavar="ID", help="Go on with a restore that broke off.")
@options.project
@options.as_json
def command(
    flow_id: str, follow: bool, new_id: str | None, project: str | None, as_json: bool
) -> int:
    """Run again what did not end ok, and what depends on that, as a new flow; print its id.

    Of an array that needs nothing that runs again, only the tasks that are not ok.
    """
    from updraft.sdk import flows  # noqa: PLC0415

    with options.client(project=project) as client:
        new = flows.restore(client, flow_id, new_id)
        return flow.show_new(client, new, follow=follow, as_json=as_json)
