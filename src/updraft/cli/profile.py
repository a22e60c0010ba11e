"""``updraft profile …``."""

from __future__ import annotations

from updraft.cli.lazy import LazyGroup

command = LazyGroup(
    "profile",
    "Choose between the servers that you signed in to and the one on this machine (local).",
    {
        "list": ("updraft.cli.profile_list:command", "list profiles"),
        "use": ("updraft.cli.profile_use:command", "use a profile from now on"),
        "remove": ("updraft.cli.profile_remove:command", "forget a profile without signing out"),
    },
)
