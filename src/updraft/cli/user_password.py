"""``updraft user password``."""

from __future__ import annotations

import click

from updraft import errors
from updraft.cli import options, passwords
from updraft.cli.output import speech


@click.command
@click.argument("name", metavar="[NAME]", required=False)
@click.option(
    "--stdin",
    "from_stdin",
    is_flag=True,
    help="Read the new password from stdin; one's own: the current one on the line before.",
)
def command(name: str | None, from_stdin: bool) -> None:
    """Set NAME's password, or one's own; their sessions end, but not the one that asks."""
    from updraft.wire.access_schemas import PasswordRequest  # noqa: PLC0415

    with options.client() as client:
        me = client.access.me().name
        name = name or me
        current: str | None = None
        if from_stdin:
            current = passwords.from_stdin("current password") if name == me else None
            password = passwords.from_stdin("password")
        else:
            current = passwords.asked("Current password") if name == me else None
            password = passwords.asked_twice(f"New password for {name}")
        if not password:
            raise errors.BadRequest("no password was given; nothing was changed")
        client.access.set_password(name, PasswordRequest(password=password, current=current))
    speech.say(f"the password of {name} was set")
