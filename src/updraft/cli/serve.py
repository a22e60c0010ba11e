"""``updraft serve``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from updraft import bootstrap, errors, settings
from updraft.cli import options


@click.command
@click.option(
    "--config",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, readable=True),
    help="Read this configuration instead of the usual one.",
)
def command(config: str | None) -> None:
    """Run the server in the foreground; its log goes to stderr.

    It stays when it is idle. Ctrl-C ends it, and its runner when no job lives; jobs that run go on.
    """
    if config is not None:
        settings.use_config(str(Path(config).absolute()))
    folders = settings.folders()
    settings.server_settings(folders)  # what is wrong with it is said before anything is started
    with options.client(start=False) as client:
        if client.running():
            raise errors.Conflict(
                f"a server runs already (pid {client.status().server.pid}); end it: updraft stop"
            )
    bootstrap.prepare_state(folders)
    os.execv(sys.executable, [sys.executable, "-I", "-m", "updraft.server"])
