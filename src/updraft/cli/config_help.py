"""``updraft config help``."""

from __future__ import annotations

import difflib
import sys
from typing import TYPE_CHECKING

import click

from updraft import errors
from updraft.cli.output import table
from updraft.configuration import reading
from updraft.configuration.keys import Key, Table, literal

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


def _names() -> list[str]:
    found = []
    for each in reading.TABLES.values():
        found += [each.name, *(f"{each.name}.{key}" for key in each.members())]
    return found


def _complete(
    _context: click.Context, _parameter: click.Parameter, beginning: str
) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem  # noqa: PLC0415 - only for completion

    return [CompletionItem(name) for name in _names() if name.startswith(beginning)]


@click.command
@click.argument("key", metavar="KEY", required=False, shell_complete=_complete)
def command(key: str | None) -> None:
    """Explain KEY, as in server.listen, or all keys of a table, as in server or pools.

    Without one, show every key with its default.
    """
    if key is None:
        for each in reading.TABLES.values():
            _show_table(each)
        return
    found = reading.find(key)
    if found is None:
        nearest = difflib.get_close_matches(key, _names(), 1)
        mend = f"did you mean {nearest[0]}?" if nearest else "see: updraft config help"
        raise errors.NotFound(f"there is no key {key!r}; {mend}")
    if isinstance(found, Table):
        _show_table(found)
    else:
        _show_key(key, found)


def _show_table(one: Table) -> None:
    sys.stdout.write(f"[{one.name}]  {one.help}\n")
    rows = [
        (f"  {name} = {literal(key.default)}", key.help) for name, (_, key) in one.members().items()
    ]
    if rows:
        table.show_pairs(rows)
    sys.stdout.write("\n")


def _show_key(name: str, key: Key) -> None:
    default = literal(key.default) + (f" ({key.derived})" if key.derived else "")
    pairs = [("key", name), ("is", key.help), ("type", key.type), ("default", default)]
    if key.bounds:
        pairs.append(("bounds", key.bounds))
    if key.secret:
        pairs.append(("secret", "updraft config show hides it"))
    table.show_pairs(pairs)
