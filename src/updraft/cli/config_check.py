"""``updraft config check``."""

from __future__ import annotations

from pathlib import Path

import click

from updraft import errors, settings
from updraft.cli import exit_codes, options
from updraft.cli.output import json, table
from updraft.configuration import reading


@click.command
@options.config_file
@options.as_json
def command(config: str | None, as_json: bool) -> int:
    """Check updraft.toml: one line for each mistake, with its mend.

    Also looks whether the files that it names can be read.  Exits with 1 if a line says FAIL.
    """
    folders = settings.folders()
    file = folders.config_file if config is None else config
    folders.config_file = file
    given = 0
    try:
        found = reading.read(folders)
        given = len(found.origins)
        problems = [*found.problems, *reading.unreadable_files(found)]
    except errors.BadConfiguration as error:
        problems = [error.message]
    if as_json:
        json.show({"file": file, "ok": not problems, "problems": problems})
    elif problems:
        for problem in problems:
            table.show_status("FAIL", problem)
    elif not Path(file).exists():
        table.show_status("OK", f"none at {file}; defaults hold")
    else:
        table.show_status("OK", f"{file}: {given} key{'' if given == 1 else 's'} set")
    return exit_codes.FAILED_REQUEST if problems else exit_codes.OK
