"""``updraft runner …``."""

from __future__ import annotations

from updraft.cli.lazy import LazyGroup

command = LazyGroup(
    "runner",
    "Make machines runners of a pool, look at them and remove them.",
    {
        "join": ("updraft.cli.runner_join:command", "make this machine a runner"),
        "run": (
            "updraft.cli.runner_run:command",
            "run a runner that has joined, in the foreground",
        ),
        "stop": ("updraft.cli.runner_stop:command", "stop a runner of this machine"),
        "token": ("updraft.cli.runner_token:command", "make a token that machines join with"),
        "tokens": ("updraft.cli.runner_tokens:command", "look at those tokens and revoke them"),
        "list": ("updraft.cli.runner_list:command", "list runners"),
        "show": ("updraft.cli.runner_show:command", "show a runner"),
        "drain": ("updraft.cli.runner_drain:command", "give a runner no new tasks"),
        "upgrade": ("updraft.cli.runner_upgrade:command", "let runners take the server's release"),
        "remove": ("updraft.cli.runner_remove:command", "forget a runner"),
    },
)
