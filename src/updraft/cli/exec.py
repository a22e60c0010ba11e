"""``updraft exec``."""

from __future__ import annotations

import os
from typing import Any

import click

from updraft import errors
from updraft.cli import launch_options, options


def _variable(value: str) -> bytes:
    """Read ``KEY=VALUE``, or ``KEY`` for what is set here, as bytes."""
    try:
        return launch_options.parse(["-e", value], batch=False).environment[0]
    except errors.BadRequest as error:
        raise click.BadParameter(error.message.removeprefix("-e: ")) from error


@click.command(
    context_settings={"allow_interspersed_args": False},
    options_metavar="[FLAGS]",
)
@click.option(
    "-e",
    "--env",
    "variables",
    multiple=True,
    metavar="KEY[=VALUE]",
    type=_variable,
    help="Set a variable over the job's environment, or pass KEY on; repeatable.",
)
@click.option(
    "--tty/--no-tty",
    default=None,
    help="Give it a terminal, or pipes; by default what stdin and stdout are.",
)
@click.option("-I", "--no-stdin", is_flag=True, help="Leave stdin alone: it sees an empty one.")
@options.job_id
@click.argument("argv", metavar="COMMAND [ARG]…", nargs=-1, required=True, type=click.UNPROCESSED)
@options.exits_as_its_job
def command(
    variables: tuple[bytes, ...],
    tty: bool | None,
    no_stdin: bool,
    job_id: str,
    argv: tuple[str, ...],
) -> int:
    """Run a second process beside a running job, in its directory, environment and limits.

    It ends with its client, with the job, or by itself, and is no job of its own.
    """
    from updraft.cli.attached import Attached  # noqa: PLC0415 - not where there is no terminal
    from updraft.cli.terminal import Terminal  # noqa: PLC0415
    from updraft.sdk.session import Session  # noqa: PLC0415
    from updraft.sdk.ways import find_way  # noqa: PLC0415

    if not job_id:
        raise errors.BadRequest("a job's id is needed; see: updraft job list")
    if argv[:1] == ("--",):  # as urun takes it
        argv = argv[1:]
    if tty is None:
        tty = os.isatty(0) and os.isatty(1)
    body: dict[str, Any] = {
        "job": job_id,
        "argv": [os.fsencode(word) for word in argv],
        "set_environment": list(variables),
        "stdin": tty or not no_stdin,
        "tty": None,
    }
    if tty:
        terminal = Terminal(0 if os.isatty(0) else 1)
        rows, columns = terminal.size()
        body["tty"] = {
            "rows": rows,
            "columns": columns,
            "attributes": terminal.attributes(),
            "stderr": os.isatty(2),
        }
    way = find_way()
    session = Session(body, way.credentials, role="exec")
    run = Attached(session, way, "updraft exec", tty=tty and os.isatty(0))
    if no_stdin:
        run.without_input()
    return run.run()
