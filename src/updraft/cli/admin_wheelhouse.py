"""``updraft admin wheelhouse``."""

from __future__ import annotations

import click

from updraft import settings
from updraft.cli import wheelhouse
from updraft.cli.output import speech


@click.command
@click.option("--output", metavar="DIR", help="Where to; the folder that the server serves.")
@click.option(
    "--python",
    "pythons",
    multiple=True,
    type=click.Choice(wheelhouse.PYTHONS),
    help="For these versions only.",
)
@click.option(
    "--machine",
    "machines",
    multiple=True,
    type=click.Choice(wheelhouse.MACHINES),
    help="For these processors only.",
)
def command(output: str | None, pythons: tuple[str, ...], machines: tuple[str, ...]) -> None:
    """Collect what runners are installed from: this Updraft's wheel, and all that it needs.

    To be run on the server's machine, as the server's user, after each upgrade.  Wheels come from
    where pip gets them; machines that join get them from the server, and need reach nothing else.
    """
    folder = output or settings.folders().wheelhouse
    for python, machine, problem in wheelhouse.build(
        folder, pythons or wheelhouse.PYTHONS, machines or wheelhouse.MACHINES
    ):
        speech.say(f"nothing for Python {python} on {machine}: {problem}")
    speech.say(f"wheels are in {folder}; machines join with: updraft runner token POOL --line")
