"""Reads ``updraft.toml`` by its description; names every mistake, with its mend."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from updraft import errors
from updraft.configuration import rules
from updraft.configuration.keys import ANY_NAME, Key, Table, tables, values
from updraft.configuration.kinds import NAME, NAME_RULE, SECRET_FILE
from updraft.configuration.schema import SELF_SIGNED, Configuration
from updraft.settings import Folders

TABLES = {table.path: table for table in tables(Configuration)}
"""Every table, by its path."""

_GROUPS = {path[:-1] for path in TABLES if len(path) > 1} - TABLES.keys()
"""What holds tables and no keys."""

_COMMAND_LINE = "command line"
_FILE_KEYS = ("server.certificate", "server.key", "sign_in.oidc.ca_file")


@dataclass(frozen=True, slots=True)
class Reading:
    """What was found in a file."""

    file: str
    configuration: Configuration
    origins: Mapping[str, str]
    """Where each key that is set comes from, by its full name."""
    problems: tuple[str, ...]
    """One line each."""


def load(folders: Folders, overrides: Mapping[str, Any] | None = None) -> Configuration:
    """Return the configuration of an instance; an absent file is an empty one.

    ``overrides``: values that the command line sets, by full name (``server.listen``), written as
    in the file.  Raises ``errors.BadConfiguration`` that names the file, the key and the mend.
    """
    found = read(folders, overrides)
    if found.problems:
        more = len(found.problems) - 1
        rest = f" (and {more} more: updraft config check)" if more else ""
        raise errors.BadConfiguration(found.problems[0] + rest)
    return found.configuration


def check(folders: Folders) -> None:
    """Read all and use none.  Raises ``errors.BadConfiguration``."""
    load(folders)


def read(folders: Folders, overrides: Mapping[str, Any] | None = None) -> Reading:
    """Return all that is set, and all that is wrong with it.

    Raises ``errors.BadConfiguration`` when the file cannot be read, or is not TOML.
    """
    file = folders.config_file
    found = _Found(Path(file).absolute().parent)
    found.visit((), _load(file))
    for name, value in (overrides or {}).items():
        *path, last = name.split(".")
        found.origin = _COMMAND_LINE
        found.problems = [each for each in found.problems if each[0] != name]  # it is not used
        found.value(tuple(path), last, value)
    configuration = found.build(Configuration, ())
    given = found.origins.keys()
    wrong = {name for name, _ in found.problems}
    found.problems.extend(
        (name, said)
        for name, said in rules.problems(configuration)
        if not any(_is_about(each, name, said) for each in wrong if each)
    )
    if not found.problems:
        machine = os.uname().nodename
        configuration = rules.completed(configuration, given, folders.state, machine)
    problems = tuple(
        f"{_COMMAND_LINE if found.origins.get(name) == _COMMAND_LINE else file}: "
        + (f"{name}: {said}" if name else said)
        for name, said in found.problems
    )
    return Reading(file, configuration, MappingProxyType(found.origins), problems)


def _is_about(wrong: str, name: str, said: str) -> bool:
    """Whether a problem between keys is about a key whose own value is wrong and not used."""
    kind = wrong.endswith(".kind") and name.startswith(wrong.removesuffix("kind"))
    return name == wrong or wrong in said or kind


def secret(file: str) -> str:
    """Return the secret that a file holds, without its last line break; empty without a file.

    Raises ``errors.BadConfiguration``.
    """
    if not file:
        return ""
    try:
        found = Path(file).read_text().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not text"
        raise errors.BadConfiguration(f"cannot read the secret in {file}: {why}") from error
    if not found:
        raise errors.BadConfiguration(f"{file} is empty; put the secret into it")
    return found


def unreadable_files(found: Reading) -> list[str]:
    """Return a line for each file that is named and cannot be read; asks the file system."""
    lines = []
    for name, described, value in values(found.configuration):
        if not value or value == SELF_SIGNED:
            continue
        if described.kind is not SECRET_FILE and name not in _FILE_KEYS:
            continue
        try:
            with Path(value).open("rb") as file:
                empty = not file.read(1)
        except OSError as error:
            lines.append(f"{found.file}: {name}: cannot read {value}: {error.strerror}")
            continue
        if empty:
            lines.append(f"{found.file}: {name}: {value} is empty; put the secret into it")
    return lines


@dataclass(slots=True)
class _Found:
    """What a file has, as it is walked."""

    folder: Path
    origin: str = "file"
    values: dict[tuple[str, ...], Any] = field(default_factory=dict)
    names: dict[tuple[str, ...], list[str]] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    problems: list[rules.Problem] = field(default_factory=list)

    def visit(self, path: tuple[str, ...], table: Mapping[str, Any]) -> None:
        """Take what stands in one table, and in the tables below it."""
        for name, value in table.items():
            below = (*path, name)
            if (*path, ANY_NAME) in TABLES:
                self._named(path, name, value)
            elif below in TABLES or below in _GROUPS or (*below, ANY_NAME) in TABLES:
                self._table(below, value)
            else:
                self.value(path, name, value)

    def _named(self, path: tuple[str, ...], name: str, value: Any) -> None:
        full = ".".join((*path, name))
        if not isinstance(value, dict):
            self.problems.append(("", f"{full} is no table; write it as [{'.'.join(path)}.NAME]"))
        elif not NAME.fullmatch(name):
            self.problems.append(("", f"[{full}]: {name!r} is no name: use {NAME_RULE}"))
        else:
            self.names.setdefault(path, []).append(name)
            self.visit((*path, name), value)

    def _table(self, path: tuple[str, ...], value: Any) -> None:
        if isinstance(value, dict):
            self.visit(path, value)
        else:
            full = ".".join(path)
            self.problems.append(("", f"{full} is no table; write it as [{full}]"))

    def value(self, path: tuple[str, ...], name: str, value: Any) -> None:
        """Take one key."""
        described = _keys(path).get(name)
        full = ".".join((*path, name))
        if described is None:
            self.problems.append(("", _unknown(path, name)))
            return
        self.origins[full] = self.origin
        try:
            amount = described[1].read(value)
        except errors.BadRequest as error:
            self.problems.append((full, error.message))
            return
        if described[1].kind.is_path and amount and amount != SELF_SIGNED:
            amount = str(self.folder / amount)
        self.values[(*path, described[0])] = amount

    def build(self, of: type[Any], path: tuple[str, ...]) -> Any:
        """Return the values of a table, and of those below it."""
        given = {
            place[-1]: value
            for place, value in self.values.items()
            if place[:-1] == path and place[-1] in of.__dataclass_fields__
        }
        for name, each in of.__dataclass_fields__.items():
            below = (*path, name)
            if "table" in each.metadata:
                given[name] = self.build(each.metadata["table"], below)
            elif "named" in each.metadata:
                kind = each.metadata["named"]
                given[name] = MappingProxyType(
                    {one: self.build(kind, (*below, one)) for one in self.names.get(below, ())}
                )
        return of(**given)


def _keys(path: tuple[str, ...]) -> dict[str, tuple[str, Key]]:
    table = TABLES.get(path) or TABLES.get((*path[:-1], ANY_NAME))
    return table.members() if table is not None else {}


def _unknown(path: tuple[str, ...], name: str) -> str:
    """Say that there is no such key, and what was probably meant."""
    if not path:
        homes = [table for table in TABLES.values() if name in table.members()]
        if homes:
            return f"{name!r} stands in no table; put it under [{homes[0].name}]"
        known = sorted({each[0] for each in TABLES})
        nearest = difflib.get_close_matches(name, known, 1)
        everything = ", ".join(f"[{each}]" for each in known)
        mend = f"did you mean [{nearest[0]}]?" if nearest else f"settings are in {everything}"
        return f"{name!r} is unknown; {mend}"
    keys = [*_keys(path), *(each[-1] for each in TABLES if each[:-1] == path)]
    nearest = difflib.get_close_matches(name, keys, 1)
    mend = f"did you mean {nearest[0]}?" if nearest else f"it has: {', '.join(keys)}"
    return f"[{'.'.join(path)}] has no key {name!r}; {mend}"


def _load(path: str) -> dict[str, Any]:
    try:
        with Path(path).open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise errors.BadConfiguration(
            f"cannot read {path}: {error.strerror}; make it readable, or remove it"
        ) from error
    except UnicodeDecodeError as error:
        raise errors.BadConfiguration(f"{path} is not UTF-8, as TOML must be") from error
    except (ValueError, RecursionError) as error:  # also a number of 5,000 digits
        raise errors.BadConfiguration(f"{path} is not valid TOML: {error}") from error


def find(name: str) -> Table | Key | None:
    """Return the table or the key of this name, as help is asked for; None for none."""
    path = tuple(name.strip("[]").split("."))
    table = TABLES.get(path) or (TABLES.get((*path[:-1], ANY_NAME)) if path[:-1] else None)
    table = table or TABLES.get((*path, ANY_NAME))
    if table is not None:
        return table
    found = _keys(path[:-1]).get(path[-1])
    return found[1] if found is not None else None
