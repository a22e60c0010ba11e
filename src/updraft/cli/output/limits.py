"""Limits as people read them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from updraft.cli.output import text

if TYPE_CHECKING:
    from updraft.wire.access_schemas import Limits


def limit_pairs(limits: Limits) -> list[tuple[str, str]]:
    """Return each limit with its label; ``none`` where there is none."""

    def size(count: int | None) -> str:
        return "none" if count is None else text.size(count)

    def number(count: float | None) -> str:
        return "none" if count is None else f"{count:g}"

    return [
        ("running jobs", number(limits.running_jobs)),
        ("cpus", number(limits.cpus)),
        ("gpus", number(limits.gpus)),
        ("memory", size(limits.memory_bytes)),
        ("stored output", size(limits.stored_bytes)),
    ]
