"""``updraft``: the way in.  What is quick to answer is answered before anything large is loaded."""

from __future__ import annotations

import sys

import updraft


def main(arguments: list[str] | None = None) -> int:
    """Run ``updraft`` and return its exit code; ``run`` and ``batch`` end the process."""
    arguments = sys.argv[1:] if arguments is None else arguments
    first = arguments[0] if arguments else ""
    if first in ("run", "batch"):
        from updraft.cli import urun  # noqa: PLC0415 - the others do not need it

        start = urun.main if first == "run" else urun.main_batch
        return start(arguments[1:], program=f"updraft {first}")
    if first == "--version":
        sys.stdout.write(f"updraft {updraft.__version__}\n")
        return 0
    from updraft.cli import commands  # noqa: PLC0415 - click; `updraft run` does without

    return commands.main(arguments)
