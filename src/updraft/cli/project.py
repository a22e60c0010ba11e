"""``updraft project …``."""

from __future__ import annotations

from updraft.cli.lazy import LazyGroup

command = LazyGroup(
    "project",
    "Look at a team server's projects, who is in them, and their limits.",
    {
        "create": ("updraft.cli.project_create:command", "make a project"),
        "list": ("updraft.cli.project_list:command", "list the projects that are yours"),
        "show": ("updraft.cli.project_show:command", "show a project and who is in it"),
        "members": ("updraft.cli.project_members:command", "list or add or remove members"),
        "limits": ("updraft.cli.project_limits:command", "show or set limits"),
        "archive": ("updraft.cli.project_archive:command", "let a project take no more jobs"),
    },
)
