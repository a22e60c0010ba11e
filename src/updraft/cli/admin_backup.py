"""``updraft admin backup`` and ``updraft admin restore``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from updraft import settings
from updraft.cli import options


@click.command
@click.argument("file", metavar="FILE", type=click.Path())
@click.option("--logs", is_flag=True, help="With the stored output of jobs.")
@click.option(
    "--keys", is_flag=True, help="With the keys of stored environments, which are secret."
)
@options.config_file
@options.as_json
def backup(file: str, logs: bool, keys: bool, config: str | None, as_json: bool) -> None:
    """Write the server's database to FILE, which must not exist; the server goes on meanwhile.

    Without --keys the environments of jobs that have not ended are of no use to whoever gets hold
    of FILE; after a restore those jobs fail and say so.
    """
    flags = [("--logs", logs), ("--keys", keys), ("--json", as_json)]
    _become("make", file, config, flags)


@click.command
@click.argument("file", metavar="FILE", type=click.Path(exists=True, dir_okay=False))
@click.option("--force", is_flag=True, help="Also where there is a database already.")
@options.config_file
@options.as_json
def restore(file: str, force: bool, config: str | None, as_json: bool) -> None:
    """Put what is in FILE into place, once it is known to be whole; refused while a server runs.

    With --force, the database that was there is kept in a file of the state folder, which is named.
    """
    _become("restore", file, config, [("--force", force), ("--json", as_json)])


def _become(what: str, file: str, config: str | None, flags: list[tuple[str, bool]]) -> None:
    """Become the server's own program for it: commands know no store."""
    if config is not None:
        settings.use_config(config)
    chosen = [flag for flag, is_set in flags if is_set]
    program = [sys.executable, "-I", "-m", "updraft.server.backup", what, str(Path(file)), *chosen]
    sys.stdout.flush()
    os.execv(sys.executable, program)
