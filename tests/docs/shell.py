"""One shell that runs a page's commands one after another, as a reader would."""

import os
import select
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

SECONDS = 120.0
"""Far more than any example takes on a busy machine."""

_MARK = "docs-example-has-ended"


class Shell:
    """A bash whose commands read nothing, and whose stderr goes where stdout goes."""

    def __init__(self, directory: Path, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            cwd=directory,
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def run(self, command: str) -> str:
        """Run a command to its end and return what it said; ``$?`` of the last one is kept."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = f"{{ {command}\n}} </dev/null; (e=$?; echo {_MARK}; exit $e)\n"
        self._process.stdin.write(line.encode())
        self._process.stdin.flush()
        said = b""
        end = f"{_MARK}\n".encode()
        deadline = time.monotonic() + SECONDS
        fd = self._process.stdout.fileno()
        while not said.endswith(end):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([fd], [], [], left)[0]:
                raise AssertionError(f"{command!r} did not end within {SECONDS:g} s; said {said!r}")
            part = os.read(fd, 65536)
            if not part:
                raise AssertionError(f"{command!r} ended the shell; said {said!r}")
            said += part
        return said[: -len(end)].decode()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()
