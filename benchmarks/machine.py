"""Facts about the machine that a reader needs to judge the figures."""

import os
import platform
from pathlib import Path

from benchmarks.scratch import file_system_of


def facts(folder: Path) -> tuple[tuple[str, str], ...]:
    """`folder` is where the measured instances keep their state."""
    return (
        ("cpu", f"{os.cpu_count()} × {_cpu_model()}"),
        ("memory", f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f} GB"),
        ("system", f"{_distribution()}, Linux {platform.release()}"),
        ("state on", file_system_of(folder)),
        ("python", platform.python_version()),
    )


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return " ".join(value.split())
    return platform.machine()


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return "unknown distribution"
