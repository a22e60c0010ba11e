"""``updraft user add``."""

from __future__ import annotations

import sys

import click

from updraft.cli import options, passwords
from updraft.cli.output import done


@click.command
@click.argument("name", metavar="NAME")
@click.option("--display", default="", metavar="TEXT", help="Their name as people write it.")
@click.option("--email", default="", metavar="ADDRESS", help="Their address.")
@click.option("--admin", "server_admin", is_flag=True, help="Make them a server admin.")
@click.option("--stdin", "from_stdin", is_flag=True, help="Read their password from stdin.")
@options.as_json
def command(
    name: str, display: str, email: str, server_admin: bool, from_stdin: bool, as_json: bool
) -> None:
    """Make a user.

    On a terminal their password is asked for; without one they sign in by OpenID Connect, or by a
    token that is made for them.
    """
    from updraft.wire.access_schemas import UserRequest  # noqa: PLC0415

    password: str | None = None
    if from_stdin:
        password = passwords.from_stdin("password")
    elif sys.stdin.isatty():
        password = passwords.asked_twice(f"Password for {name} (empty: none)") or None
    request = UserRequest(
        name=name, display=display, email=email, password=password, server_admin=server_admin
    )
    with options.client() as client:
        user = client.access.add_user(request)
    line = f"user {user.name} was made; put them into a project: updraft project members"
    done.show(user, line, as_json=as_json)
