"""Flows: graphs of steps, each of which becomes a job.  Pure: reading, order, what to restore."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from updraft import errors, quantities
from updraft.model.dependencies import On
from updraft.model.job import MOST_TASKS

MOST_STEPS = 1000

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_FLOW_KEYS = ("name", "steps")
_STEP_KEYS = (
    "name",
    "command",
    "pool",
    "cpus",
    "memory",
    "gpus",
    "time",
    "needs",
    "array",
    "retries",
    "env",
    "directory",
)
_LOST_RETRIES = 2
"""As ``ubatch`` has it: after the loss of a machine."""


@dataclass(frozen=True, slots=True)
class Step:
    """One job of a flow."""

    name: str
    command: tuple[str, ...]
    needs: Mapping[str, On] = field(default_factory=dict)
    """The steps that it runs after, and how those are to end."""
    pool: str = ""
    cpus_milli: int = 1000
    memory_bytes: int = 0
    gpus: int = 0
    time_seconds: float | None = None
    array: int | None = None
    """How many tasks it has; None: it is no array."""
    retries: int = _LOST_RETRIES
    env: Mapping[str, str] = field(default_factory=dict)
    directory: str | None = None


@dataclass(frozen=True, slots=True)
class Flow:
    """Steps in an order in which each comes after those that it needs."""

    name: str
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Fate:
    """How a step fares."""

    ok: bool | None
    """None: it has not ended."""
    started: bool


def read_flow(document: Any, pools: Collection[str] | None = None) -> tuple[Flow | None, list[str]]:
    """Return the flow that a document describes, or else what is wrong with it, a line each.

    ``document``: as YAML or JSON give it; ``pools``: those that there are; None: not known.
    """
    if not isinstance(document, dict) or not isinstance(document.get("steps"), list):
        return None, [
            "a flow is a mapping with a list of steps; write steps: and under it - name: …"
        ]
    reader = _Reader(pools)
    reader.unknown("the flow", document, _FLOW_KEYS)
    name = document.get("name", "")
    if not isinstance(name, str) or not name.isprintable() or len(name) > 200:
        reader.problems.append("name: a printable text is needed; put it in quotes")
    listed = document["steps"]
    if not 1 <= len(listed) <= MOST_STEPS:
        reader.problems.append(f"steps: a flow has 1 to {MOST_STEPS} of them")
    steps: dict[str, Step] = {}
    for number, each in enumerate(listed, 1):
        step = reader.step(number, each)
        if step is None:
            continue
        if step.name in steps:
            reader.problems.append(f"step {step.name}: there are two of that name; rename one")
        steps[step.name] = step
    for step in steps.values():
        reader.needs(step, steps)
    if reader.problems:
        return None, reader.problems
    graph = {step.name: step.needs for step in steps.values()}
    cycle = cycle_of(graph)
    if cycle:
        chain = " needs ".join([*cycle, cycle[0]])
        return None, [f"step {cycle[0]}: {chain}; take one of these needs away"]
    return Flow(name, tuple(steps[each] for each in in_order(graph))), []


def in_order(needs: Mapping[str, Collection[str]]) -> list[str]:
    """Return the steps so that each comes after those that it needs; there is no cycle."""
    left = {name: len(needed) for name, needed in needs.items()}
    behind: dict[str, list[str]] = {}
    for name, needed in needs.items():
        for each in needed:
            behind.setdefault(each, []).append(name)
    found = [name for name, count in left.items() if not count]
    for name in found:  # which grows
        for each in behind.get(name, ()):
            left[each] -= 1
            if not left[each]:
                found.append(each)
    return found


def cycle_of(needs: Mapping[str, Collection[str]]) -> list[str]:
    """Return steps that need each other in a circle, none when there are none such."""
    stuck = set(needs).difference(in_order(needs))
    if not stuck:
        return []
    # Whoever is stuck needs another one that is: following these comes back to itself.
    path = [next(name for name in needs if name in stuck)]
    while True:
        following = next(each for each in needs[path[-1]] if each in stuck)
        if following in path:
            return path[path.index(following) :]
        path.append(following)


def not_needed(needs: Mapping[str, Mapping[str, On]], fates: Mapping[str, Fate]) -> set[str]:
    """Return the steps that never ran since nothing went wrong: those for failures that were none.

    ``needs``: of steps in an order in which each comes after those that it needs.
    """
    found: set[str] = set()
    for name, needed in needs.items():
        if fates[name].started or fates[name].ok is not False:
            continue
        for each, on in needed.items():
            if (on is On.FAIL and fates[each].ok) or (on is On.OK and each in found):
                found.add(name)
    return found


def to_restore(needs: Mapping[str, Mapping[str, On]], fates: Mapping[str, Fate]) -> list[str]:
    """Return the steps to run again: what did not end ok, and all that depends on that.

    ``needs``: of steps in an order in which each comes after those that it needs.
    """
    passed = not_needed(needs, fates)
    again: dict[str, None] = {}
    for name, needed in needs.items():
        bad = not fates[name].ok and name not in passed
        if bad or any(each in again for each in needed):
            again[name] = None
    return list(again)


class _Reader:
    """Reads steps, and notes what is wrong with them."""

    def __init__(self, pools: Collection[str] | None) -> None:
        self.problems: list[str] = []
        self._pools = pools

    def unknown(self, what: str, values: Mapping[Any, Any], known: Sequence[str]) -> None:
        for key in values:
            if key not in known:
                close = difflib.get_close_matches(str(key), known, 1)
                mend = f"did you mean {close[0]}?" if close else f"there are: {', '.join(known)}"
                self.problems.append(f"{what}: unknown key {key!r}; {mend}")

    def step(self, number: int, values: Any) -> Step | None:
        if not isinstance(values, dict):
            self.problems.append(f"step {number}: a mapping is needed, as - name: train")
            return None
        name = values.get("name")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            self.problems.append(
                f"step {number}: name: one of letters, digits, - _ and . is needed, as train-1"
            )
            return None
        self.unknown(f"step {name}", values, _STEP_KEYS)
        read = _Values(name, values, self.problems)
        pool = read.text("pool") or ""
        if pool and self._pools is not None and pool not in self._pools:
            known = ", ".join(sorted(self._pools)) or "none"
            self.problems.append(f"step {name}: there is no pool {pool!r}; the pools are: {known}")
        return Step(
            name=name,
            command=read.command(),
            needs=read.needs(),
            pool=pool,
            cpus_milli=read.amount("cpus", quantities.parse_cpus, 1000),
            memory_bytes=read.amount("memory", quantities.parse_bytes, 0),
            gpus=read.count("gpus", 0, 1 << 16) or 0,
            time_seconds=read.amount("time", _time, None),
            array=read.count("array", 1, MOST_TASKS),
            retries=_LOST_RETRIES if "retries" not in values else read.count("retries", 0, 1000),
            env=read.env(),
            directory=read.text("directory"),
        )

    def needs(self, step: Step, steps: Mapping[str, Step]) -> None:
        for each in step.needs:
            if each not in steps:
                close = difflib.get_close_matches(each, steps, 1)
                mend = f"did you mean {close[0]}?" if close else f"there are: {', '.join(steps)}"
                self.problems.append(f"step {step.name}: it needs {each!r}, which is none; {mend}")


class _Values:
    """Reads one step's values."""

    def __init__(self, step: str, values: Mapping[Any, Any], problems: list[str]) -> None:
        self._step, self._values, self._problems = step, values, problems

    def _wrong(self, key: str, said: str) -> None:
        self._problems.append(f"step {self._step}: {key}: {said}")

    def text(self, key: str) -> str | None:
        value = self._values.get(key)
        if key not in self._values:
            return None
        if not isinstance(value, str) or not value or "\0" in value:
            self._wrong(key, "a text is needed; put it in quotes")
            return None
        return value

    def command(self) -> tuple[str, ...]:
        value = self._values.get("command")
        if isinstance(value, str) and value.strip():
            words: list[Any] = ["/bin/sh", "-c", value]
        elif isinstance(value, list) and value:
            words = [str(each) if _is_number(each) else each for each in value]
        else:
            self._wrong("command", 'write it as a text for the shell, or as a list: ["echo", "1"]')
            return ()
        if any(not isinstance(each, str) or "\0" in each for each in words):
            self._wrong("command", "each word must be a text; put it in quotes")
            return ()
        return tuple(words)

    def needs(self) -> dict[str, On]:
        value = self._values.get("needs", [])
        if isinstance(value, str):
            value = [value]
        if isinstance(value, list):
            value = dict.fromkeys(map(str, value), "ok")
        if not isinstance(value, dict):
            self._wrong("needs", "a list of steps is needed, or a mapping as {train: ok}")
            return {}
        found = {}
        for name, on in value.items():
            if on not in list(On):
                self._wrong("needs", f"{name}: {on!r} is none of {', '.join(On)}")
            else:
                found[str(name)] = On(on)
        return found

    def amount(self, key: str, parse: Any, default: Any) -> Any:
        value = self._values.get(key)
        if key not in self._values:
            return default
        if not isinstance(value, str) and not _is_number(value):
            self._wrong(key, f"{value!r} is no amount; write it like 2 or, with a unit, in quotes")
            return default
        try:
            return parse(str(value))
        except errors.BadRequest as error:
            self._wrong(key, error.message)
            return default

    def count(self, key: str, low: int, high: int) -> Any:
        value = self._values.get(key)
        if key not in self._values:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            self._wrong(key, f"{value!r} is no count; write a number from {low} to {high}")
            return None
        return value

    def env(self) -> dict[str, str]:
        value = self._values.get("env", {})
        if not isinstance(value, dict):
            self._wrong("env", "a mapping is needed, as env: {SEED: 7}")
            return {}
        found = {}
        for name, each in value.items():
            if not isinstance(name, str) or not name or "=" in name or "\0" in name:
                self._wrong("env", f"{name!r} cannot be a variable's name; put it in quotes")
            elif not (isinstance(each, str) or _is_number(each)) or "\0" in str(each):
                self._wrong("env", f"{name}: a text is needed; put it in quotes")
            else:
                found[name] = str(each)
        return found


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _time(text: str) -> float:
    seconds = quantities.parse_duration(text)
    if seconds <= 0:
        raise errors.BadRequest("a time limit is more than nothing; write it like 90s or 2h")
    return seconds


def tree(needs: Mapping[str, Collection[str]]) -> Iterator[tuple[str, str, list[str]]]:
    """Yield the steps as a tree: the branches before a step, its name, and what else it needs.

    Each step stands once: below the first that it needs.
    """
    below: dict[str | None, list[str]] = {}
    for name in in_order(needs):
        first = next(iter(needs[name]), None)
        below.setdefault(first, []).append(name)
    # Not by recursion: a chain may be as long as a flow.
    left = [("", "", name) for name in reversed(below.get(None, []))]
    while left:
        before, branch, name = left.pop()
        yield before + branch, name, list(needs[name])[1:]
        inner = before + {"": "", "├─ ": "│  ", "└─ ": "   "}[branch]
        children = below.get(name, [])
        left += [
            (inner, "└─ " if each == children[-1] else "├─ ", each) for each in reversed(children)
        ]
