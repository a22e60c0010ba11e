"""``updraft pool create``."""

from __future__ import annotations

from typing import Any

import click

from updraft.cli import options, pool_options
from updraft.cli.output import done


@click.command
@click.argument("name", metavar="NAME")
@pool_options.settings
@options.as_json
def command(name: str, as_json: bool, **settings: Any) -> None:
    """Make a pool, that machines can join: for server admins."""
    from updraft.sdk.answers import request  # noqa: PLC0415
    from updraft.wire.fleet_schemas import PoolRequest  # noqa: PLC0415

    wanted = request(PoolRequest, {"name": name, **pool_options.given(settings)})
    with options.client() as client:
        pool = client.fleet.create_pool(wanted)
    line = f"pool {name} was made; let machines join it: updraft runner token {name}"
    done.show(pool, line, as_json=as_json)
