"""``updraft serve``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from updraft import bootstrap, configuration, errors, settings
from updraft.cli import options


@click.command
@options.config_file
def command(config: str | None) -> None:
    """Run the server in the foreground; its log goes to stderr.

    Ctrl-C ends it, and its runner when no job lives; jobs that run go on.
    """
    if config is not None:
        settings.use_config(str(Path(config).absolute()))
    folders = settings.folders()
    configuration.check(folders)  # what is wrong with it is said before anything is started
    with options.client(start=False) as client:
        if client.running():
            raise errors.Conflict(
                f"a server runs already (pid {client.status().server.pid}); end it: updraft stop"
            )
    bootstrap.prepare_state(folders)
    os.execv(sys.executable, [sys.executable, "-I", "-m", "updraft.server"])
