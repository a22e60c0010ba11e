"""``updraft config show``."""

from __future__ import annotations

import click

from updraft import errors, settings
from updraft.cli import options
from updraft.cli.output import json, table
from updraft.configuration import reading
from updraft.configuration.keys import literal, values


@click.command
@options.config_file
@options.as_json
def command(config: str | None, as_json: bool) -> None:
    """Show every key with the value that holds and where it comes from; secrets are hidden.

    Values are written as in updraft.toml.
    """
    folders = settings.folders()
    folders.config_file = folders.config_file if config is None else config
    found = reading.read(folders)
    if found.problems:
        raise errors.BadConfiguration(f"{found.problems[0]}; for all: updraft config check")
    rows = [
        (name, described.shown(value), found.origins.get(name, "default"))
        for name, described, value in values(found.configuration)
    ]
    if as_json:
        keys = [{"key": name, "value": value, "from": origin} for name, value, origin in rows]
        json.show({"file": found.file, "keys": keys})
    else:
        lines = [(name, literal(value), origin) for name, value, origin in rows]
        table.show(("KEY", "VALUE", "FROM"), lines)
