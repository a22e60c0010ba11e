"""Writes the references of commands and keys from their code: ``make docs``.

``docs/cli.md`` is written whole, in ``docs/configuration.md`` what stands between its two marks.

Flags of ``urun`` and ``ubatch`` come from their one table, those of ``updraft`` from click, exit
codes from the table that ``updraft help exit-codes`` shows, fields of ``--json`` from the API's
schemas, keys from the description that also reads the configuration.  A test holds the pages to the
code.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import click
from pydantic import BaseModel

from updraft.cli import exit_codes
from updraft.cli.commands import ROOT
from updraft.cli.launch_options import FLAGS
from updraft.cli.lazy import LazyGroup
from updraft.configuration.keys import ANY_NAME, Key, literal
from updraft.configuration.reading import TABLES
from updraft.wire import access_schemas, schemas

PAGE = Path(__file__).with_name("cli.md")
CONFIGURATION = Path(__file__).with_name("configuration.md")

_INTRODUCTION = """\
# Commands

<!-- Written by docs/build.py (make docs); change the code instead. -->

- `urun` runs a command as if it were local, `ubatch` leaves one running; `updraft` does the rest.
- Every command takes `--help`. Data goes to stdout, talk to stderr. Commands that print data take
  `--json`: times in it are ISO 8601 in UTC, sizes bytes, durations seconds.
- A job's id may be cut short as long as it is unique.
- A server that is needed and not there is started, which one line on stderr says. `status`, `stop`,
  `doctor`, `config`, `help`, `completion`, `simulate`, `login`, `logout` and `profile` start none.
"""

_LAUNCHERS = (
    ("urun", False, "Runs COMMAND as if it were local. The same as `updraft run`."),
    (
        "ubatch",
        True,
        "Leaves COMMAND running and prints its job's id. The same as `updraft batch`.",
    ),
)
_REST = "Everything after the first word that is no flag belongs to the command; `--` works too."


def page() -> str:
    """Return the whole page."""
    parts = [_INTRODUCTION]
    for program, batch, what in _LAUNCHERS:
        parts.append("\n".join(_launcher(program, batch=batch, what=what)))
    for name, command in _commands(ROOT, "updraft"):
        parts.append("\n".join(_command(name, command)))
    parts.append("\n".join(_exit_codes()))
    parts.append("\n".join(_fields()))
    return "\n".join(parts)


def configuration_page() -> str:
    """Return the page of the configuration, with the tables of keys that the code describes."""
    before, mark, rest = CONFIGURATION.read_text().partition("<!-- keys")
    first, line_end, old = rest.partition("\n")
    _, end, after = old.partition("<!-- /keys -->")
    if not (mark and end):
        raise ValueError(f"the marks of {CONFIGURATION} are gone")
    return before + mark + first + line_end + "\n".join(_keys()) + end + after


def _keys() -> Iterator[str]:
    for table in TABLES.values():
        members = table.members()
        if not members:
            continue
        chosen = f"; {ANY_NAME} is yours to choose" if ANY_NAME in table.path else ""
        yield f"### [{table.name}]\n\n{table.help[:1].upper()}{table.help[1:]}{chosen}.\n"
        rows = [
            (f"`{name}`", _takes(key), _default(key), key.help)
            for name, (_, key) in members.items()
        ]
        yield from _table(("key", "type", "default", "is"), rows)


def _takes(key: Key) -> str:
    return key.type + (f", {key.bounds}" if key.bounds else "")


def _default(key: Key) -> str:
    return (
        key.derived
        if key.derived and key.default == ""
        else f"`{literal(key.default)}`" + (f"; {key.derived}" if key.derived else "")
    )


def _launcher(program: str, *, batch: bool, what: str) -> Iterator[str]:
    yield f"## {program}\n\n```\n{program} [flags] COMMAND [ARG…]\n```\n\n{what}\n{_REST}\n"
    rows = [
        (", ".join(f"`{_named(name, flag.value)}`" for name in flag.names), flag.text)
        for flag in FLAGS
        if flag.batch in (None, batch) and flag.key != "help"
    ]
    yield from _table(("flag", "does"), rows)


def _named(name: str, value: str | None) -> str:
    return name if value is None else f"{name} {value}"


def _commands(group: LazyGroup, before: str) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None  # noqa: S101 - it is in the list
        if isinstance(command, LazyGroup):
            yield from _commands(command, f"{before} {name}")
        elif name not in ("run", "batch"):
            yield f"{before} {name}", command


def _command(name: str, command: click.Command) -> Iterator[str]:
    context = click.Context(command, info_name=name)
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"## {name}\n\n```\n{name} {usage}\n```\n"
    yield f"{_paragraphs(command.help or '')}\n"
    rows = [
        (", ".join(f"`{_named(name, option.metavar)}`" for name in _names(option)), _does(option))
        for option in command.params
        if isinstance(option, click.Option)
    ]
    if rows:
        yield from _table(("flag", "does"), rows)


def _names(option: click.Option) -> list[str]:
    return [*option.opts, *option.secondary_opts]


def _does(option: click.Option) -> str:
    text = (option.help or "").rstrip(".")
    text = text[:1].lower() + text[1:]
    return f"{text} (default: {option.default})" if option.show_default else text


def _paragraphs(text: str) -> str:
    """Return help text as Markdown; what follows click's ``\\b`` is kept as it is."""
    found = []
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        if paragraph.startswith("\b\n"):
            found.append(f"```\n{paragraph[2:]}\n```")
        else:
            found.append(" ".join(paragraph.split()))
    return "\n\n".join(found)


def _exit_codes() -> Iterator[str]:
    yield f"## Exit codes\n\n{exit_codes.AS_ITS_JOB}:\n"
    yield from _table(("code", "means"), exit_codes.JOB_CODES)
    yield "Every other command:\n"
    yield from _table(("code", "means"), exit_codes.OTHER_CODES)
    yield from (f"- {note}" for note in exit_codes.NOTES)
    yield ""


def _fields() -> Iterator[str]:
    yield "## Fields of --json\n"
    for title, model in (
        ("`updraft job show` (`job list` has all but `attempts` and `linked`)", schemas.Job),
        ("… its `resources`", schemas.Resources),
        ("… its `times`", schemas.Times),
        ("… each of its `attempts`", schemas.Attempt),
        ("… their `usage`", schemas.Usage),
        ("`updraft job watch`, a line each", schemas.Event),
        ("`updraft whoami`", access_schemas.Me),
        ("`updraft user show` (`user list` has all but `projects`)", access_schemas.User),
        ("`updraft token create` (`token list` has all but `token`)", access_schemas.NewToken),
        ("`updraft project list` (`project show` adds `members`)", access_schemas.Project),
        ("`updraft project limits`, and `limits` of a project and a member", access_schemas.Limits),
        ("`updraft project members`", access_schemas.Member),
        ("`updraft admin audit`", access_schemas.AuditEntry),
        ("`updraft status`: `server`", schemas.ServerStatus),
        ("`updraft status`: `runner`", schemas.RunnerStatus),
    ):
        yield f"{title}:\n"
        yield from _table(("field", "is"), _model(model))


def _model(model: type[BaseModel]) -> Iterator[tuple[str, str]]:
    document = model.model_json_schema(mode="serialization")
    for name, field in document["properties"].items():
        kinds = [_kind(kind) for kind in field.get("anyOf", [field])]
        described = field.get("description", "")
        yield f"`{name}`", " or ".join(kinds) + (f": {described}" if described else "")


def _kind(schema: dict[str, object]) -> str:
    if "$ref" in schema:
        name = str(schema["$ref"]).rpartition("/")[2]
        known = {"State": "state", "AttemptState": "state", "Wanted": "run, suspend or cancel"}
        known |= {"Role": "viewer, member or admin", "Scope": "read, run or admin"}
        return known.get(name, "object")
    if schema.get("format") == "date-time":
        return "time"
    kind = str(schema.get("type", "any"))
    return {"array": "list", "string": "text"}.get(kind, kind)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |\n|{'---|' * len(header)}"
    for row in rows:
        yield f"| {' | '.join(_cell(cell) for cell in row)} |"
    yield ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    for path, text in ((PAGE, page()), (CONFIGURATION, configuration_page())):
        path.write_text(text)
        sys.stdout.write(f"wrote {path}\n")
