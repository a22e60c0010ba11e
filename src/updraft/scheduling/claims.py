"""Places that a job is promised, and that others leave before it starts there."""

from __future__ import annotations

from dataclasses import dataclass

from updraft.scheduling.entries import Queued
from updraft.scheduling.hosts import room_in
from updraft.scheduling.nodes import Nodes


@dataclass(slots=True, eq=False)
class Claim:
    """What an entry is promised: how many of its tasks on which nodes."""

    queued: Queued
    parts: dict[str, int]

    @property
    def tasks(self) -> int:
        """How many tasks it is for."""
        return sum(self.parts.values())


class Claims:
    """All claims of a pool; what they are for is free to nobody else."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes
        self._at: dict[str, list[Claim]] = {}

    def __len__(self) -> int:
        return len(self.all())

    def make(self, claim: Claim) -> None:
        """Keep what an entry is promised."""
        claim.queued.claimed += claim.tasks
        claim.queued.left -= claim.tasks
        for name, tasks in claim.parts.items():
            self._at.setdefault(name, []).append(claim)
            self._nodes.claim(self._nodes.hosts[name], claim.queued.entry.need, tasks)

    def drop(self, claim: Claim) -> None:
        """Keep it no more; its tasks wait again."""
        claim.queued.claimed -= claim.tasks
        claim.queued.left += claim.tasks
        for name, tasks in claim.parts.items():
            claims = self._at[name]
            claims.remove(claim)
            if not claims:
                del self._at[name]
            self._nodes.claim(self._nodes.hosts[name], claim.queued.entry.need, -tasks)

    def all(self) -> list[Claim]:
        """Return every claim."""
        found = (claim for claims in self._at.values() for claim in claims)
        return list({id(claim): claim for claim in found}.values())

    def on(self, name: str) -> list[Claim]:
        """Return the claims on a node, the oldest first."""
        return list(self._at.get(name, ()))

    def of(self, queued: Queued) -> list[Claim]:
        """Return what an entry is promised."""
        return [claim for claim in self.all() if claim.queued is queued]

    def is_free(self, claim: Claim) -> bool:
        """Whether what a claim is for has been left, and no older claim needs it."""
        return all(self._is_free_on(name, claim, tasks) for name, tasks in claim.parts.items())

    def _is_free_on(self, name: str, claim: Claim, tasks: int) -> bool:
        host = self._nodes.hosts[name]
        cpus_milli, memory_bytes, gpus = host.amounts
        claims = self._at[name]
        for each in claims[claims.index(claim) :]:
            need, count = each.queued.entry.need, each.parts[name]
            cpus_milli += need.cpus_milli * count
            memory_bytes += need.memory_bytes * count
            gpus += need.gpus * count
        need = claim.queued.entry.need
        return host.open and room_in((cpus_milli, memory_bytes, gpus), need) >= tasks
