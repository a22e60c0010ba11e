"""``updraft profile remove``."""

from __future__ import annotations

import os

import click

from updraft import settings
from updraft.cli.output import speech


@click.command
@click.argument("name", metavar="PROFILE")
def command(name: str) -> None:
    """Forget a profile; its session goes on.  To end it too: updraft logout PROFILE."""
    from updraft.sdk import profiles  # noqa: PLC0415

    profiles.remove(settings.config_folder(os.environ), name)
    speech.say(f"profile {name} is forgotten")
