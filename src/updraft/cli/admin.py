"""``updraft admin …``."""

from __future__ import annotations

from updraft.cli.lazy import LazyGroup

command = LazyGroup(
    "admin",
    "Administer a server.",
    {
        "audit": ("updraft.cli.admin_audit:command", "show what administrators did"),
    },
)
