"""``updraft config …``."""

from __future__ import annotations

from updraft.cli.lazy import LazyGroup

command = LazyGroup(
    "config",
    "Check, show and explain what updraft.toml sets.  Starts nothing.",
    {
        "check": ("updraft.cli.config_check:command", "check a configuration file"),
        "show": ("updraft.cli.config_show:command", "show every value and where it comes from"),
        "help": ("updraft.cli.config_help:command", "explain keys and tables"),
    },
)
