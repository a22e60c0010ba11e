"""``updraft run`` and ``batch`` as help and completion see them; what runs is ``cli.urun``."""

from __future__ import annotations

import click

from updraft.cli.launch_options import FLAGS, Flag


def _option(flag: Flag) -> click.Option:
    if flag.value is None:
        return click.Option(flag.names, is_flag=True, help=flag.text)
    return click.Option(flag.names, metavar=flag.value, help=flag.text)


def _command(name: str, *, batch: bool) -> click.Command:
    flags = [flag for flag in FLAGS if flag.batch in (None, batch)]
    return click.Command(
        name,
        params=[
            *(_option(flag) for flag in flags),
            click.Argument(["command"], nargs=-1, type=click.UNPROCESSED),
        ],
        add_help_option=False,
    )


run = _command("run", batch=False)
batch = _command("batch", batch=True)
