"""``updraft token …``."""

from __future__ import annotations

from updraft.cli.lazy import LazyGroup

command = LazyGroup(
    "token",
    "Make tokens for programs (CI, scripts), and revoke them.",
    {
        "create": ("updraft.cli.token_create:command", "make a token and print it once"),
        "list": ("updraft.cli.token_list:command", "list tokens and sessions and their last use"),
        "revoke": ("updraft.cli.token_revoke:command", "revoke tokens and end sessions at once"),
    },
)
