"""``updraft runner join``."""

from __future__ import annotations

import os
import sys

import click

from updraft import errors, settings
from updraft.cli import passwords
from updraft.cli.output import speech
from updraft.runner import joined, joining, systemd
from updraft.runner.joined import Joined
from updraft.sdk import targets
from updraft.sdk.joining import join

_MAX_TOKEN = 1000


@click.command
@click.argument("url")
@click.argument("token", required=False)
@click.option("--name", default="", help="What to call it; else by this host's name.")
@click.option("--fingerprint", default="", help="The server's certificate, if it is self-signed.")
@click.option("--serves", default="", metavar="USER", help="Take tasks of this user only.")
@click.option("--foreground", is_flag=True, help="Stay, as systemd and containers want it.")
def command(
    url: str, token: str | None, name: str, fingerprint: str, serves: str, foreground: bool
) -> None:
    """Make this machine a runner of the pool that TOKEN is for, and start it.

    All users of a machine can read a command's arguments.  So leave TOKEN out: it is taken from
    UPDRAFT_JOIN_TOKEN then, else read from standard input, or asked for.  Root's runner becomes a
    unit of systemd, where that runs; else it is started in the background.

    With --foreground, one that has joined URL from here already goes on as that runner, and needs
    no token: a container that is started again runs the same command.
    """
    url = targets.url_of(*targets.parse_url(url))
    fingerprint = fingerprint and targets.parse_fingerprint(fingerprint)
    token = token or settings.take_join_token()
    if foreground and (before := joining.folder_of(url, name)):
        joining.pin(before, fingerprint)
        keeper = joining.command_of(before)
        place = joined.load(before)
        speech.say(f"this machine goes on as runner {place.name} of pool {place.pool}")
        os.execv(keeper[0], keeper)
    secret = (token or _read_token()).strip()
    if not secret:
        raise errors.BadRequest("a join token is needed; make one: updraft runner token POOL")
    machine = joining.machine(name, serves)
    answer = join(url, secret, machine, fingerprint=fingerprint)
    shared = machine["shared"]
    place = Joined(url, answer.name, answer.pool, answer.token, fingerprint, shared)
    folder = joining.keep(place)
    for_whom = f" for {answer.serves}" if answer.serves else ""
    speech.say(f"this machine is runner {place.name} of pool {place.pool}{for_whom}")
    if foreground:
        keeper = joining.command(folder, shared=shared)
        os.execv(keeper[0], keeper)
    if systemd.starts_units():
        unit = systemd.install(folder, settings.own_places())
        speech.say(f"systemd runs it from now on: systemctl status {unit}")
    else:
        joining.start(folder, shared=shared)


def _read_token() -> str:
    return passwords.asked("Join token") if sys.stdin.isatty() else sys.stdin.readline(_MAX_TOKEN)
