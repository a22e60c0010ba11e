"""``updraft project show``."""

from __future__ import annotations

import click

from updraft.cli import options
from updraft.cli.output import json, table, text
from updraft.cli.output.limits import limit_pairs


@click.command
@click.argument("project", metavar="PROJECT")
@options.as_json
def command(project: str, as_json: bool) -> None:
    """Show a project, its limits, and who is in it."""
    with options.client() as client:
        found = client.access.project(project)
        members = client.access.members(project)
    if as_json:
        shown = found.model_dump(mode="json")
        json.show({**shown, "members": [each.model_dump(mode="json") for each in members]})
        return
    pairs = [
        ("name", found.name),
        ("created", text.clock(found.created)),
        ("archived", text.clock(found.archived)),
        *limit_pairs(found.limits),
    ]
    pairs += [(str(each.role), each.user) for each in members]
    table.show_pairs(pairs)
