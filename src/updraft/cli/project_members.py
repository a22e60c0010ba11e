"""``updraft project members``."""

from __future__ import annotations

import click

from updraft.cli import options
from updraft.cli.output import json, speech, table, text
from updraft.model.access import Role


@click.command
@click.argument("project", metavar="PROJECT")
@click.option("--add", metavar="USER", help="Put USER into the project, or give another role.")
@click.option(
    "--role",
    metavar="ROLE",
    type=click.Choice([str(role) for role in Role]),
    help="What USER is to be: viewer, member (the default) or admin.",
)
@click.option("--remove", metavar="USER", help="Take USER out of the project; their jobs stay.")
@options.as_json
def command(
    project: str, add: str | None, role: str | None, remove: str | None, as_json: bool
) -> None:
    """List who is in a project, or put somebody in or take somebody out.

    Viewers look at jobs and output, members run jobs, admins end everybody's and decide who is in.
    """
    from updraft.wire.access_schemas import MemberRequest  # noqa: PLC0415

    if role is not None and add is None:
        raise click.UsageError("--role goes with --add")
    if add is not None and add == remove:
        raise click.UsageError("--add and --remove name the same user")
    with options.client() as client:
        if add is not None:
            request = MemberRequest(role=Role(role or Role.MEMBER))
            member = client.access.set_member(project, add, request)
            speech.say(f"{member.user} is {member.role} of project {project}")
        if remove is not None:
            client.access.remove_member(project, remove)
            speech.say(f"{remove} is no longer in project {project}")
        members = client.access.members(project)
    if as_json:
        json.show(members)
    elif add is None and remove is None:
        rows = [(each.user, str(each.role), text.yes_no(each.disabled)) for each in members]
        table.show(("USER", "ROLE", "DISABLED"), rows)
