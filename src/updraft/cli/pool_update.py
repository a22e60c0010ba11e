"""``updraft pool update``."""

from __future__ import annotations

from typing import Any

import click

from updraft import errors
from updraft.cli import options, pool_options
from updraft.cli.output import done


@click.command
@click.argument("name", metavar="NAME")
@pool_options.settings
@options.as_json
def command(name: str, as_json: bool, **settings: Any) -> None:
    """Change those of a pool's settings that are given: for server admins.

    Labels, projects and GPUs are replaced as a whole; none takes them away.  Jobs that run go on.
    """
    from updraft.sdk.answers import request  # noqa: PLC0415
    from updraft.wire.fleet_schemas import PoolSettings  # noqa: PLC0415

    changes = pool_options.given(settings)
    if not changes:
        raise errors.BadRequest("nothing to change was given; see: updraft pool update --help")
    with options.client() as client:
        known = client.fleet.pool(name).settings.model_dump()
        pool = client.fleet.update_pool(name, request(PoolSettings, {**known, **changes}))
    done.show(pool, f"pool {name} was changed", as_json=as_json)
