"""How keys and tables are described: as fields of frozen dataclasses, which hold what was read."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from updraft import errors
from updraft.configuration.kinds import Kind

ANY_NAME = "NAME"
"""Stands for the name that the user chooses, in the path of a table like ``[pools.NAME]``."""


@dataclass(frozen=True, slots=True)
class Key:
    """One key: what it takes and means.  Amounts are written as in the file."""

    kind: Kind
    default: Any
    help: str
    name: str = ""
    least: Any = None
    most: Any = None
    secret: bool = False
    words: tuple[tuple[str, Any], ...] = ()
    """Words that it takes beside its type's values, and what they are read as."""
    derived: str = ""
    """What decides the default, where the written one is not all."""

    def read(self, value: Any) -> Any:
        """Return what the file's ``value`` means.  Raises ``errors.BadRequest``."""
        for word, meaning in self.words:
            if value == word:
                return meaning
        amount = self.kind.read(value)
        if self.least is not None and amount < self.kind.read(self.least):
            raise errors.BadRequest(f"{value!r} is too little; the least is {self.least}")
        if self.most is not None and amount > self.kind.read(self.most):
            raise errors.BadRequest(f"{value!r} is too much; the most is {self.most}")
        return amount

    def plain(self, value: Any) -> Any:
        """Return the TOML value that would be read as ``value``."""
        for word, meaning in self.words:
            if value == meaning and type(value) is type(meaning):
                return word
        return self.kind.plain(value)

    def shown(self, value: Any) -> Any:
        """Return ``plain(value)``, without what is secret."""
        return self.kind.conceal(value) if self.secret and value else self.plain(value)

    @property
    def type(self) -> str:
        """What it takes, in words."""
        return " or ".join([self.kind.name, *(f'"{word}"' for word, _ in self.words)])

    @property
    def bounds(self) -> str:
        """Its bounds, in words; empty where there are none."""
        least = "" if self.least is None else f"at least {self.least}"
        most = "" if self.most is None else f"at most {self.most}"
        return ", ".join(filter(None, (least, most)))


@dataclass(frozen=True, slots=True)
class Table:
    """One table: ``[server]``, or ``[pools.NAME]`` where users choose names."""

    path: tuple[str, ...]
    type: type[Any]
    help: str

    @property
    def name(self) -> str:
        """As it stands in the file."""
        return ".".join(self.path)

    def members(self) -> dict[str, tuple[str, Key]]:
        """Return its keys by name, each with the attribute that holds its value."""
        found = {}
        for field in dataclasses.fields(self.type):
            if "key" in field.metadata:
                described: Key = field.metadata["key"]
                name = described.name or field.name
                found[name] = (field.name, dataclasses.replace(described, name=name))
        return found


def setting(kind: Kind, default: Any, help: str, **more: Any) -> Any:
    """Describe a key: a field whose default is what ``default`` is read as."""
    described = Key(kind, default, help, **more)
    return dataclasses.field(
        default_factory=lambda: described.read(default), metadata={"key": described}
    )


def table(of: type[Any], help: str) -> Any:
    """Describe a table of keys."""
    return dataclasses.field(default_factory=of, metadata={"table": of, "help": help})


def named_tables(of: type[Any], help: str) -> Any:
    """Describe tables to which users give names; the value maps a name to what it holds."""
    return dataclasses.field(
        default_factory=lambda: MappingProxyType({}), metadata={"named": of, "help": help}
    )


def tables(of: type[Any], path: tuple[str, ...] = ()) -> Iterator[Table]:
    """Yield every table that ``of`` describes, the outer before the inner."""
    for field in dataclasses.fields(of):
        below = (*path, field.name)
        if "table" in field.metadata:
            yield Table(below, field.metadata["table"], field.metadata["help"])
            yield from tables(field.metadata["table"], below)
        elif "named" in field.metadata:
            yield Table((*below, ANY_NAME), field.metadata["named"], field.metadata["help"])


def values(of: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Key, Any]]:
    """Yield all keys that a configuration has, by their full names, with their values."""
    for name, (attribute, described) in Table(path, type(of), "").members().items():
        yield ".".join((*path, name)), described, getattr(of, attribute)
    for field in dataclasses.fields(of):
        held = getattr(of, field.name)
        if "table" in field.metadata:
            yield from values(held, (*path, field.name))
        elif "named" in field.metadata:
            for name, each in held.items():
                yield from values(each, (*path, field.name, name))


def literal(value: Any) -> str:
    """Return a plain value as TOML writes it."""
    if isinstance(value, dict):
        pairs = ", ".join(f"{json.dumps(name)} = {literal(item)}" for name, item in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    if isinstance(value, list):
        return f"[{', '.join(literal(item) for item in value)}]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return json.dumps(value)
