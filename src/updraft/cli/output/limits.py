"""Limits as people read them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from updraft.cli.output import text

if TYPE_CHECKING:
    from updraft.wire.access_schemas import Limits

_LABELS = {
    "running_jobs": "running jobs",
    "cpus": "cpus",
    "gpus": "gpus",
    "memory_bytes": "memory",
    "stored_bytes": "stored output",
}


def limit_pairs(limits: Limits) -> list[tuple[str, str]]:
    """Return each limit with its label; ``none`` where there is none."""
    return [(label, _shown(limits, name)) for name, label in _LABELS.items()]


def _shown(limits: Limits, name: str) -> str:
    value = getattr(limits, name)
    if value is None:
        return "none"
    shown = text.size(value) if name.endswith("_bytes") else f"{value:g}"
    return f"{shown} (default)" if name in limits.defaults else shown
