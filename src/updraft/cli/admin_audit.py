"""``updraft admin audit``."""

from __future__ import annotations

from json import dumps
from typing import TYPE_CHECKING, Any

import click

from updraft.cli import options
from updraft.cli.output import json, speech, table, text

if TYPE_CHECKING:
    from updraft.wire.access_schemas import AuditEntry

_NEWEST = 500
_HEADERS = ("AT", "WHO", "ACTION", "SUBJECT", "DETAILS", "FROM")


@click.command
@click.option("--user", metavar="USER", help="Only what USER did.")
@click.option("--action", metavar="ACTION", help="Only this, as 'create token'.")
@click.option(
    "--limit",
    default=50,
    show_default=True,
    metavar="N",
    type=click.IntRange(min=1),
    help="Show at most N, the newest.",
)
@options.as_json
def command(user: str | None, action: str | None, limit: int, as_json: bool) -> None:
    """Show sign-ins and what administrators did, newest first.  For server admins."""
    with options.client() as client:
        entries = list(client.access.audit(user=user, action=action, limit=limit))
        newest = [] if entries or as_json else list(client.access.audit(limit=_NEWEST))
    if as_json:
        json.show(entries)
    elif not entries:
        speech.say("no entry matches" + _what_there_is(newest, user, action))
    else:
        rows = [
            (
                text.clock(entry.at),
                text.printable(entry.who),
                entry.action,
                text.printable(entry.subject),
                _details(entry.details),
                entry.peer,
            )
            for entry in entries
        ]
        table.show(_HEADERS, rows)


def _what_there_is(newest: list[AuditEntry], user: str | None, action: str | None) -> str:
    """Return by whom and what the newest entries are, for whoever mistyped one."""
    said = ""
    if user is not None and (users := sorted({entry.who for entry in newest})):
        said += f"; there are some of: {text.printable(', '.join(users))}"
    if action is not None and (actions := sorted({entry.action for entry in newest})):
        said += f"; there are: {', '.join(actions)}"
    return said


def _details(details: dict[str, Any]) -> str:
    words = (f"{key}={_shown(value)}" for key, value in details.items() if value is not None)
    return text.printable(" ".join(words)) or "-"


def _shown(value: object) -> str:
    return value if isinstance(value, str) else dumps(value)
