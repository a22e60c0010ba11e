"""``updraft profile use``."""

from __future__ import annotations

import os

import click

from updraft import settings
from updraft.cli.output import speech


@click.command
@click.argument("name", metavar="PROFILE")
def command(name: str) -> None:
    """Use a profile from now on; local is the server on this machine."""
    from updraft.sdk import profiles  # noqa: PLC0415

    profiles.use(settings.config_folder(os.environ), name)
    speech.say(f"commands go to {'this machine' if name == 'local' else name} from now on")
