"""``updraft pool …``."""

from __future__ import annotations

from updraft.cli.lazy import LazyGroup

command = LazyGroup(
    "pool",
    "Look at pools, and change them.",
    {
        "list": ("updraft.cli.pool_list:command", "list pools: what is free, and who waits"),
        "show": ("updraft.cli.pool_show:command", "show a pool"),
        "create": ("updraft.cli.pool_create:command", "make a pool"),
        "update": ("updraft.cli.pool_update:command", "change a pool's settings"),
        "drain": ("updraft.cli.pool_drain:command", "take no new jobs into a pool"),
        "delete": ("updraft.cli.pool_delete:command", "forget a pool"),
    },
)
