"""Disks that are full: a tiny file system for root, and a bound on files for everybody."""

import contextlib
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

FILLER = "filler"


@contextlib.contextmanager
def small_disk(at: Path, kib: int, inodes: int = 200) -> Iterator[Path]:
    """Mount a file system of ``kib`` KiB at ``at``, for root."""
    at.mkdir(parents=True, exist_ok=True)
    options = f"size={kib}k,nr_inodes={inodes},mode=755"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "updraft-test", at], check=True)
    try:
        yield at
    finally:
        # Lazily: a process that is still ending may hold it.
        subprocess.run(["umount", "--lazy", at], check=True)


def fill(disk: Path) -> None:
    """Leave no room on a disk."""
    with (disk / FILLER).open("ab", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(bytes(4096))


def make_room(disk: Path) -> None:
    """Take back what ``fill`` took."""
    (disk / FILLER).unlink()


@contextlib.contextmanager
def limited_file_size(limit_bytes: int) -> Iterator[None]:
    """Let no file of this process grow over the limit: a full disk for those who are not root."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
