"""``updraft flow run``."""

from __future__ import annotations

import click

from updraft.cli import exit_codes, options
from updraft.cli.output import flow as shown
from updraft.cli.output import speech


@click.command
@click.argument("file", metavar="FILE", type=click.Path(exists=True, dir_okay=False))
@click.option("-f", "--follow", is_flag=True, help="Stay, and show how the steps fare.")
@click.option("--id", "flow_id", metavar="ID", help="Go on with a flow that broke off.")
@options.project
@options.as_json
def command(
    file: str, follow: bool, flow_id: str | None, project: str | None, as_json: bool
) -> int:
    """Submit all steps of a flow, and print its id.

    The file is checked first: where something is wrong in it, nothing is submitted.  With -f the
    exit code is 0 when all steps ended ok, else 1.
    """
    from updraft.sdk import flows  # noqa: PLC0415

    flow, problems = flows.load(file, None)
    if flow is None:
        return _refuse(file, problems)
    with options.client(project=project) as client:
        if any(step.pool for step in flow.steps):
            flow, problems = flows.load(file, [pool.name for pool in client.fleet.pools()])
            if flow is None:
                return _refuse(file, problems)
        new = flows.submit(client, flow, flow_id, elsewhere=client.elsewhere)
        return shown.show_new(client, new, follow=follow, as_json=as_json)


def _refuse(file: str, problems: list[str]) -> int:
    for problem in problems:
        speech.say(f"{file}: {problem}")
    return exit_codes.USAGE
