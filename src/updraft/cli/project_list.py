"""``updraft project list``."""

from __future__ import annotations

import click

from updraft.cli import options
from updraft.cli.output import json, speech, table, text


@click.command
@options.as_json
def command(as_json: bool) -> None:
    """List the projects that are yours; a server admin sees all."""
    with options.client() as client:
        projects = client.access.projects()
    if as_json:
        json.show(projects)
    elif not projects:
        speech.say("you are in no project; ask an admin of one to add you")
    else:
        rows = [
            (
                each.name,
                str(each.role) if each.member else "-",
                text.clock(each.created),
                text.clock(each.archived),
            )
            for each in projects
        ]
        table.show(("NAME", "YOUR ROLE", "CREATED", "ARCHIVED"), rows)
