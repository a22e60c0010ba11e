"""``updraft flow …``."""

from __future__ import annotations

from updraft.cli.lazy import LazyGroup

command = LazyGroup(
    "flow",
    "Run graphs of jobs: steps that need each other, written in a YAML file.",
    {
        "run": ("updraft.cli.flow_run:command", "submit the steps of a file"),
        "show": ("updraft.cli.flow_show:command", "show how the steps of a flow fare"),
        "list": ("updraft.cli.flow_list:command", "list flows, the newest ones first"),
        "cancel": ("updraft.cli.flow_cancel:command", "cancel what has not ended of a flow"),
        "restore": ("updraft.cli.flow_restore:command", "run again what did not end ok"),
    },
)
