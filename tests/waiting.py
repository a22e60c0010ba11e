"""Waiting in tests: on the thing itself, and never for ever."""

import errno
import os
import select
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

SECONDS = 10.0
"""Far more than anything here takes on a busy machine: who waits this long waits in vain."""


def until(look: Callable[[], T], what: str = "", seconds: float = SECONDS) -> T:
    """Look until there is something true to see, and return it; fail the test when there is not."""
    deadline = time.monotonic() + seconds
    pause = 0.001
    while not (seen := look()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:g} s for {what or look}; last saw {seen!r}")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.05)
    return seen


def wait_gone(pid: int, seconds: float = SECONDS) -> None:
    """Wait until a process has ended (a zombie has), whoever's child it is; fail if it lives on."""
    try:
        fd = os.pidfd_open(pid)
    except OSError as error:
        if error.errno not in (errno.ESRCH, errno.EINVAL):  # EINVAL: a zombie, before Linux 6.9
            raise
        return
    try:
        if not select.select([fd], [], [], seconds)[0]:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            raise AssertionError(f"process {pid} lives on: {command!r}")
    finally:
        os.close(fd)
