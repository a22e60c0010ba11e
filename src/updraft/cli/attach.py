"""``updraft attach``."""

from __future__ import annotations

import os

import click

from updraft import errors
from updraft.cli import launch_options, options


def _keys(value: str) -> bytes:
    """Read ``ctrl-p,ctrl-q`` as the bytes that these keys send."""
    try:
        return launch_options.parse(["--detach-keys", value], batch=False).detach_keys
    except errors.BadRequest as error:
        raise click.BadParameter(error.message.removeprefix("--detach-keys: ")) from error


@click.command
@options.job_id
@click.option("-I", "--no-stdin", is_flag=True, help="Leave stdin alone.")
@click.option(
    "--detach-keys",
    metavar="KEYS",
    type=_keys,
    default="ctrl-p,ctrl-q",
    show_default=True,
    help="Leave the job running on these keys.",
)
@options.exits_as_its_job
def command(job_id: str, no_stdin: bool, detach_keys: bytes) -> int:
    """Take over a running job: its output from now on, its input, its signals, its exit code.

    Another client that is attached is let go.  What the job wrote before: updraft logs.  A job that
    was submitted detached goes on when its terminal here is closed.
    """
    from updraft.cli.attached import Attached  # noqa: PLC0415 - not where there is no terminal
    from updraft.sdk.session import Session  # noqa: PLC0415
    from updraft.sdk.ways import find_way  # noqa: PLC0415

    with options.client() as client:
        job = client.job(job_id)
    if job.state.terminal:
        raise errors.Conflict(f"job {job.id} has ended; see: updraft logs {job.id}")
    if job.tasks is not None:
        raise errors.Conflict(
            f"job {job.id} has {job.tasks.total} tasks; follow them: updraft logs -f {job.id}"
        )
    way = find_way()
    session = Session(None, way.credentials, job=job.id)
    session.from_now = True
    tty = job.terminal and os.isatty(0)
    run = Attached(session, way, "updraft attach", tty=tty)
    if no_stdin or not (job.stdin or job.terminal):
        run.without_input()
    if os.isatty(0) and not no_stdin:  # in a pipe, the same bytes are data
        run.detach_on(detach_keys)
    return run.run()
