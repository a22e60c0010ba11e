"""What a runner has, what of it is free, and what fits into that."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from updraft.model.job import Resources
from updraft.model.pool import Shape

NOTHING = Resources(cpus_milli=0)
"""The need of a task that costs its runner nothing."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a runner has, or what of it is free.  ``memory_bytes`` counts requests, not use."""

    cpus_milli: int
    memory_bytes: int
    gpus: frozenset[str]

    def fits(self, need: Resources) -> bool:
        """Whether ``need`` can be met from this; what is not needed need not be there.

        Less than nothing may be free: a runner can come back smaller than what runs on it.
        """
        return (
            need.cpus_milli <= max(self.cpus_milli, 0)
            and need.memory_bytes <= max(self.memory_bytes, 0)
            and need.gpus <= len(self.gpus)
        )

    def take(self, need: Resources) -> tuple[Capacity, tuple[str, ...]]:
        """Return what is left, and the ids of the GPUs that ``need`` gets."""
        chosen = tuple(sorted(self.gpus)[: need.gpus])
        return self.without(need, chosen), chosen

    def without(self, need: Resources, gpus: Iterable[str]) -> Capacity:
        """Return what is left when a task with ``need`` holds these GPUs."""
        return Capacity(
            self.cpus_milli - need.cpus_milli,
            self.memory_bytes - need.memory_bytes,
            self.gpus.difference(gpus),
        )

    def give_back(self, need: Resources, gpus: Iterable[str]) -> Capacity:
        """Return what is free once a task with ``need`` has ended."""
        return Capacity(
            self.cpus_milli + need.cpus_milli,
            self.memory_bytes + need.memory_bytes,
            self.gpus.union(gpus),
        )


@dataclass(frozen=True, slots=True)
class Node:
    """A runner that takes tasks now, as far as placement needs it."""

    name: str
    free: Capacity
    serves: str | None = None
    """The only owner whose tasks it takes; None: everybody's."""
    peer_network: str = ""
    """Nodes with the same one reach each other directly; empty: it reaches none."""

    def takes(self, owner: str) -> bool:
        """Whether it takes tasks of ``owner``'s at all."""
        return self.serves is None or self.serves == owner


def shaped(reported: Mapping[str, Any], shape: Shape | None = None) -> Capacity:
    """Return what a runner offers: what it said that it has, and no more than its pool's shape.

    ``reported``: ``cpus_milli``, ``memory_bytes`` and ``gpus``, each with ``uuid`` and ``kind``.
    """
    shape = shape or Shape()
    cpus_milli, memory_bytes = int(reported["cpus_milli"]), int(reported["memory_bytes"])
    return Capacity(
        cpus_milli if shape.cpus_milli is None else min(cpus_milli, shape.cpus_milli),
        memory_bytes if shape.memory_bytes is None else min(memory_bytes, shape.memory_bytes),
        frozenset(_gpus_of(reported["gpus"], shape.gpus)),
    )


def _gpus_of(
    devices: Sequence[Mapping[str, Any]], wanted: Sequence[tuple[str, int]]
) -> Iterable[str]:
    """Return the ids of the devices that are offered: so many of each kind, in their order.

    A kind is meant by words of the name that its maker gave it: ``a100``, ``RTX 4090``.
    """
    if not wanted:
        return [str(device["uuid"]) for device in devices]
    chosen: list[str] = []
    for kind, count in sorted(wanted, key=lambda each: (-len(_words(each[0])), each)):
        fitting = [
            str(device["uuid"])
            for device in devices
            if _words(kind) <= _words(str(device.get("kind", "")))
            and str(device["uuid"]) not in chosen
        ]
        chosen += fitting[:count]
    return chosen


def _words(text: str) -> set[str]:
    return set(re.findall("[a-z0-9]+", text.lower()))
