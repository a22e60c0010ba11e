"""Where all ranks of a gang start at once: on one node, or on nodes of one network."""

from __future__ import annotations

from collections.abc import Callable

from updraft.scheduling.entries import Entry
from updraft.scheduling.hosts import Host, times
from updraft.scheduling.nodes import Nodes
from updraft.scheduling.reservation import fewest

Room = Callable[[Host], int]
"""How many ranks may start on a node."""


def place_gang(nodes: Nodes, entry: Entry, room: Room) -> tuple[dict[str, int], int]:
    """Return how many ranks each node gets; if they do not fit, nothing and how many are short.

    Looks at as many nodes with room as it has ranks, in each network.
    """
    owner, ranks = entry.party.owner, entry.count
    one = nodes.fullest(times(entry.need, ranks), owner, lambda host: room(host) >= ranks)
    if one is not None:
        return {one.name: ranks}, 0
    found: dict[str, dict[str, int]] = {}
    sums: dict[str, int] = {}
    most = 0
    for host in nodes.roomy(entry.need, owner):
        here = room(host)
        if not here:
            continue
        if not host.network:
            most = max(most, here)
            continue
        found.setdefault(host.network, {})[host.name] = here
        there = sums[host.network] = sums.get(host.network, 0) + here
        if there >= ranks:
            return fewest(found[host.network], ranks), 0
        most = max(most, there)
    # A node that reservations keep, and that was looked at last, may have had room for all.
    return {}, max(ranks - most, 1)
