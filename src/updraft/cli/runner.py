"""``updraft runner``."""

from __future__ import annotations

from updraft.cli.lazy import LazyGroup

command = LazyGroup(
    "runner",
    "Make machines runners of a pool, look at them and remove them.",
    {
        "join": ("updraft.cli.runner_join:command", "make this machine a runner"),
        "token": ("updraft.cli.runner_token:command", "make a token that machines join with"),
    },
)
