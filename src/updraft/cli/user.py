"""``updraft user …``."""

from __future__ import annotations

from updraft.cli.lazy import LazyGroup

command = LazyGroup(
    "user",
    "Look at a team server's users, and change them: for server admins.",
    {
        "add": ("updraft.cli.user_add:command", "make a user"),
        "list": ("updraft.cli.user_list:command", "list users"),
        "show": ("updraft.cli.user_show:command", "show a user and their projects"),
        "disable": ("updraft.cli.user_disable:command", "keep a user out at once"),
        "enable": ("updraft.cli.user_enable:command", "let a user in again"),
        "password": ("updraft.cli.user_password:command", "set a password"),
        "remove": ("updraft.cli.user_remove:command", "remove a user for good"),
    },
)
