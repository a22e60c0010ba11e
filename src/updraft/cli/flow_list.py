"""``updraft flow list``."""

from __future__ import annotations

import click

from updraft.cli import options
from updraft.cli.output import flow, json, table


@click.command
@click.option(
    "--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="Show so many."
)
@options.project
@options.as_json
def command(limit: int, project: str | None, as_json: bool) -> None:
    """List flows, the newest ones first, of those in the newest 5000 jobs."""
    from updraft.sdk import flows  # noqa: PLC0415

    with options.client(project=project) as client:
        found = flows.flows(client, limit)
    if as_json:
        json.show([each.plain() for each in found])
    elif found:
        table.show(flow.LIST_HEADERS, [flow.list_row(each) for each in found])
