"""``updraft project limits``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import click

from updraft import errors, quantities
from updraft.cli import options
from updraft.cli.output import json, table
from updraft.cli.output.limits import limit_pairs


class _Given(NamedTuple):
    """A limit on the command line; None: without limit."""

    value: float | None


def _limit(read: Callable[[str], float]) -> Callable[[str], _Given]:
    def parse(text: str) -> _Given:
        if text == "none":
            return _Given(None)
        try:
            return _Given(read(text))
        except errors.BadRequest as error:
            raise click.BadParameter(f"{error.message}, or none") from error

    return parse


def _count(text: str) -> int:
    if not text.isdecimal():
        raise errors.BadRequest(f"{text!r} is no number")
    return int(text)


def _cpus(text: str) -> float:
    return quantities.parse_cpus(text) / 1000


@click.command
@click.argument("project", metavar="PROJECT")
@click.option("--user", metavar="USER", help="The limits of USER in the project.")
@click.option("--running-jobs", metavar="N", type=_limit(_count), help="Jobs that run at a time.")
@click.option("--cpus", metavar="N", type=_limit(_cpus), help="CPUs of running jobs together.")
@click.option("--gpus", metavar="N", type=_limit(_count), help="GPUs of running jobs together.")
@click.option(
    "--memory",
    "memory_bytes",
    metavar="SIZE",
    type=_limit(quantities.parse_bytes),
    help="Memory of running jobs together.",
)
@click.option(
    "--stored",
    "stored_bytes",
    metavar="SIZE",
    type=_limit(quantities.parse_bytes),
    help="Output of ended jobs; above it no job is taken.",
)
@options.as_json
def command(project: str, user: str | None, as_json: bool, **given: _Given | None) -> None:
    """Show a project's limits, after those that are given were set; none takes one away.

    Where none is set, the default of the server's updraft.toml holds.  Jobs above a limit wait, and
    say so.
    """
    from updraft.wire.access_schemas import LimitsRequest  # noqa: PLC0415

    changes = {name: limit.value for name, limit in given.items() if limit is not None}
    with options.client() as client:
        if user is None:
            limits = client.access.project(project).limits
        else:
            found = [each for each in client.access.members(project) if each.user == user]
            if not found:
                raise errors.NotFound(
                    f"{user!r} is not in project {project}; see who is: updraft project members "
                    f"{project}"
                )
            limits = found[0].limits
        if changes:
            own = limits.model_dump(exclude={"defaults", *limits.defaults})
            wanted: dict[str, Any] = {**own, **changes}
            limits = client.access.set_limits(project, LimitsRequest(**wanted), user)
    if as_json:
        json.show(limits)
    else:
        table.show_pairs(limit_pairs(limits))
