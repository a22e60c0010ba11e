"""``updraft runner upgrade``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from updraft import errors
from updraft.cli import exit_codes, options
from updraft.cli.output import json, speech

if TYPE_CHECKING:
    from updraft.sdk.fleet import Fleet
    from updraft.wire.fleet_schemas import RunnerInfo

_LOOK_SECONDS = 0.25
_BACK_SECONDS = 60.0
"""For its new agent to come."""


@click.command
@click.argument("name", metavar="NAME", required=False)
@click.option("--all", "every", is_flag=True, help="All runners that have another release.")
@options.as_json
def command(name: str | None, every: bool, as_json: bool) -> int:
    """Let a runner take the server's release, from the server's wheels; its tasks go on.

    For runners that the line of updraft runner token --line installed.  A failed upgrade changes
    nothing.
    """
    if (name is None) is not every:
        raise click.UsageError("say which runner: NAME, or --all")
    code = exit_codes.OK
    upgraded: list[RunnerInfo] = []
    with options.client() as client:
        fleet = client.fleet
        runners = [fleet.runner(name)] if name is not None else fleet.runners()
        asked = []
        for runner in runners:
            if not runner.outdated:
                if not every:
                    speech.say(f"runner {runner.name} has the server's release {runner.release}")
                continue
            try:
                asked.append(fleet.upgrade_runner(runner.name))
            except errors.UpdraftError as error:
                speech.say(error.message)  # the others are upgraded all the same
                code = exit_codes.FAILED_REQUEST
        for runner in asked:
            try:
                upgraded.append(_wait(fleet, runner.name))
            except errors.UpdraftError as error:
                speech.say(error.message)
                code = exit_codes.FAILED_REQUEST
    if as_json:
        json.show(upgraded)
    elif every and not asked and code == exit_codes.OK:
        speech.say("no runner that is there has another release than the server")
    else:
        for runner in upgraded:
            speech.say(f"runner {runner.name} has release {runner.release} now")
    return code


def _wait(fleet: Fleet, name: str) -> RunnerInfo:
    """Return the runner once it has been upgraded.  Raises ``errors.UpdraftError``."""
    seen = time.monotonic()
    while True:
        runner = fleet.runner(name)
        if not runner.outdated:
            return runner
        if runner.upgrade_problem is not None:
            raise errors.Conflict(
                f"runner {name} was not upgraded, and is as it was: {runner.upgrade_problem}"
            )
        if runner.state in ("away", "lost"):
            if time.monotonic() - seen > _BACK_SECONDS:
                raise errors.Unavailable(f"runner {name} is away since; see its log there")
        elif runner.upgrading:
            seen = time.monotonic()
        else:
            raise errors.Conflict(f"runner {name} was restarted meanwhile; upgrade it again")
        time.sleep(_LOOK_SECONDS)
