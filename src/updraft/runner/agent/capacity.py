"""What this machine can give to tasks: CPUs, memory, GPUs."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from updraft.runner.agent.gpus import find_gpus


def find_capacity() -> dict[str, Any]:
    """Return the capacity: ``cpus_milli``, ``memory_bytes`` ``gpus`` and ``host``."""
    return {
        "cpus_milli": _cpu_count() * 1000,
        "memory_bytes": _memory_bytes(),
        "gpus": find_gpus(),
        "host": os.uname().nodename,
    }


def _cpu_count() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_bytes() -> int:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError), open(path) as file:
            total = min(total, int(file.read()))
    return total
