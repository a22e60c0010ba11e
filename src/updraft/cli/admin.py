"""``updraft admin …``."""

from __future__ import annotations

from updraft.cli.lazy import LazyGroup

command = LazyGroup(
    "admin",
    "Administer a server.",
    {
        "audit": ("updraft.cli.admin_audit:command", "show what administrators did"),
        "backup": ("updraft.cli.admin_backup:backup", "write a backup while the server goes on"),
        "wheelhouse": (
            "updraft.cli.admin_wheelhouse:command",
            "collect what runners are installed from",
        ),
        "restore": ("updraft.cli.admin_backup:restore", "put a backup into place"),
    },
)
