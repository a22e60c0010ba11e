"""``updraft runner tokens …``."""

from __future__ import annotations

from updraft.cli.lazy import LazyGroup

command = LazyGroup(
    "tokens",
    "Look at the tokens that machines join with, and revoke them: for server admins.",
    {
        "list": ("updraft.cli.runner_tokens_list:command", "list join tokens"),
        "revoke": ("updraft.cli.runner_tokens_revoke:command", "let nothing join with a token"),
    },
)
