"""A wall clock of a host's own, which may jump while its programs run; see clock.c.

Linux has one wall clock for all, and a time namespace moves only the others. libfaketime would do,
but Debian 12's (0.9.10) makes `time.sleep` of Python 3.11 fail. Programs that do not ask the C
library for the time (linked statically, or Go) and the times of files stay with the system's clock.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from pathlib import Path

COMPILERS = ("cc", "gcc", "clang", "tcc")


def compiler() -> str | None:
    return next((found for name in COMPILERS if (found := shutil.which(name))), None)


class Clock:
    """The library and the offset of one host, in a folder that its programs may read."""

    def __init__(self, folder: Path, name: str) -> None:
        self._offset = folder / f"{name}.clock"
        self._offset.write_bytes(struct.pack("q", 0))
        self._offset.chmod(0o644)
        self._library = folder / "clock.so"
        if not self._library.exists():
            if (command := compiler()) is None:
                raise FileNotFoundError(f"a clock needs a C compiler: {', '.join(COMPILERS)}")
            source = Path(__file__).with_name("clock.c")
            built = [
                command,
                "-shared",
                "-fPIC",
                "-nostdlib",
                "-o",
                str(self._library),
                str(source),
            ]
            subprocess.run(built, check=True, timeout=60)
            self._library.chmod(0o755)

    def set(self, offset_seconds: float) -> None:
        """Be this far from the system's clock; it holds at once in every program."""
        # Eight bytes that are aligned: a program reads the old or the new ones, never some of each.
        with self._offset.open("r+b", buffering=0) as file:
            file.write(struct.pack("q", round(offset_seconds * 1e9)))

    def environment(self) -> dict[str, str]:
        """What a program must be started with."""
        libraries = [str(self._library), *os.environ.get("LD_PRELOAD", "").split()]
        return {"LD_PRELOAD": " ".join(libraries), "UPDRAFT_TEST_CLOCK": str(self._offset)}
