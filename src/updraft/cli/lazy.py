"""Groups of commands that load a command's file only when the command is called."""

from __future__ import annotations

from importlib import import_module

import click

HELP_NAMES = {"help_option_names": ["-h", "--help"]}


class LazyGroup(click.Group):
    """Knows where its commands are (``module:attribute``) and what help says of them."""

    def __init__(self, name: str, summary: str, lazy: dict[str, tuple[str, str]]) -> None:
        super().__init__(name, help=summary, context_settings=HELP_NAMES)
        self._lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._lazy:
            return None
        place, summary = self._lazy[cmd_name]
        module, _, attribute = place.partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        command.name, command.short_help = cmd_name, summary
        command.context_settings = {**HELP_NAMES, **command.context_settings}
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in self._lazy.items()])
