"""``updraft project create``."""

from __future__ import annotations

import click

from updraft.cli import options
from updraft.cli.output import json, speech


@click.command
@click.argument("name", metavar="NAME")
@options.as_json
def command(name: str, as_json: bool) -> None:
    """Make a project; you are its first admin.  For server admins."""
    with options.client() as client:
        project = client.access.create_project(name)
    if as_json:
        json.show(project)
    else:
        speech.say(f"project {project.name} was made")
