"""``updraft runner run``."""

from __future__ import annotations

import os

import click

from updraft.runner import joining


@click.command
@click.option("--folder", metavar="DIR", help="The runner's; needed where several have joined.")
def command(folder: str | None) -> None:
    """Run a runner that has joined in the foreground, as systemd and containers want it."""
    keeper = joining.command_of(folder or joining.only_folder())
    os.execv(keeper[0], keeper)
