"""Names of resource limits, as ``ulimit -a`` readers know them."""

from __future__ import annotations

import resource


def limit_names(numbers: list[int]) -> str:
    """Return the names of these limits, separated by commas: ``nofile, core``."""
    names = {
        value: name.removeprefix("RLIMIT_").lower()
        for name, value in vars(resource).items()
        if name.startswith("RLIMIT_")
    }
    return ", ".join(names.get(number, str(number)) for number in numbers)
