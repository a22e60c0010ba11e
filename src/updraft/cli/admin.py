"""``updraft admin …``."""

from __future__ import annotations

from updraft.cli.lazy import LazyGroup

command = LazyGroup(
    "admin",
    "What those do who look after a server.",
    {
        "backup": ("updraft.cli.admin_backup:backup", "write a backup while the server goes on"),
        "restore": ("updraft.cli.admin_backup:restore", "put a backup into place"),
    },
)
