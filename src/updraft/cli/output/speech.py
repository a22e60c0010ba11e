"""Talk goes to stderr, data to stdout."""

from __future__ import annotations

import sys


def say(message: str, program: str = "updraft") -> None:
    """Write a line for the person."""
    sys.stderr.write(f"{program}: {message}\n")
    sys.stderr.flush()


def prepare_output() -> None:
    """Let text through that the terminal's encoding lacks, as its escape."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
