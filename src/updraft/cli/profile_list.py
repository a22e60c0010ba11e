"""``updraft profile list``."""

from __future__ import annotations

import os

import click

from updraft import settings
from updraft.cli import options
from updraft.cli.output import json, table, text


@click.command
@options.as_json
def command(as_json: bool) -> None:
    """List profiles, and which is in use."""
    from updraft.sdk import profiles, targets  # noqa: PLC0415

    folder = settings.config_folder(os.environ)
    current = os.environ.get("UPDRAFT_PROFILE") or targets.current_profile(folder)
    found = []
    for name in profiles.names(folder):
        target = None if name == targets.LOCAL else targets.read_profile(folder, name)
        found.append(
            {
                "name": name,
                "in_use": name == current,
                "url": None if target is None else target.url,
                "user": None if target is None else target.user,
                "project": None if target is None else target.project,
                "fingerprint": None if target is None else target.fingerprint,
            }
        )
    if as_json:
        json.show(found)
        return
    rows = [
        (
            str(each["name"]),
            text.yes_no(bool(each["in_use"])),
            str(each["url"] or "this machine"),
            str(each["user"] or "-"),
            str(each["project"] or "-"),
        )
        for each in found
    ]
    table.show(("NAME", "IN USE", "SERVER", "USER", "PROJECT"), rows)
