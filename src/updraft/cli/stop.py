"""``updraft stop``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from updraft import bootstrap, errors, settings
from updraft.cli import exit_codes, options
from updraft.cli.output import speech

if TYPE_CHECKING:
    from updraft.wire.schemas import StopMode

_END_SECONDS = 30.0
_LOOK_AGAIN_SECONDS = 0.02


@click.command
@click.option("--drain", is_flag=True, help="Wait until all jobs have ended.")
@click.option("--cancel", is_flag=True, help="Cancel all jobs.")
def command(drain: bool, cancel: bool) -> int:
    """Stop the server and its runner; refused while jobs live, unless told what to do with them.

    While it drains, no new job is taken; Ctrl-C leaves it draining.
    """
    if drain and cancel:
        raise click.UsageError("--drain and --cancel exclude each other")
    mode: StopMode = "drain" if drain else "cancel" if cancel else "refuse"
    folders = settings.folders()
    # A runner without its server is about to start it again: that one is stopped.
    with options.client(start=bootstrap.is_locked(_keeper_lock(folders))) as client:
        if not client.running() and not bootstrap.is_locked(_keeper_lock(folders)):
            speech.say("the server is not running")
            return exit_codes.OK
        if drain:
            jobs = client.status().jobs
            if count := jobs.running + jobs.in_queue:
                speech.say(f"waiting for {count} job{'' if count == 1 else 's'} to end")
        client.stop(mode)
    until = time.monotonic() + _END_SECONDS
    for lock in (folders.server_lock, _keeper_lock(folders)):
        while bootstrap.is_locked(lock):
            if time.monotonic() > until:
                raise errors.Unavailable(
                    f"the server was told to stop but has not ended; see {folders.server_log}"
                )
            time.sleep(_LOOK_AGAIN_SECONDS)
    speech.say("stopped")
    return exit_codes.OK


def _keeper_lock(folders: settings.Folders) -> str:
    return str(Path(folders.runner) / "keeper.lock")
