"""Temporary folders on a real disk, and the environment that measured commands get."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_IN_MEMORY = {"tmpfs", "ramfs"}


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder with a short path (sockets have 108 bytes), removed at the end.

    On a disk: in a memory file system an fsync costs nothing, and everyone who stores would look
    better than they are.
    """
    parent = Path(tempfile.gettempdir())
    if file_system_of(parent) in _IN_MEMORY:
        parent = Path("/var/tmp")  # persistent by the file system hierarchy standard
    with tempfile.TemporaryDirectory(
        prefix="bench-", dir=parent, ignore_cleanup_errors=True
    ) as folder:
        yield Path(folder)


def file_system_of(path: Path) -> str:
    """The type of the file system that `path` lies on, such as `ext4`; or `unknown`."""
    real = path.resolve()
    best, kind = Path(), "unknown"
    try:
        lines = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return kind
    for line in lines:
        _, mount_point, mount_kind, *_ = line.split()
        mount = Path(mount_point.replace("\\040", " "))
        if real.is_relative_to(mount) and len(mount.parts) >= len(best.parts):
            best, kind = mount, mount_kind
    return kind


def plain_environment() -> dict[str, str]:
    """What every measured command gets: no settings of the caller's Python, shell or Slurm."""
    kept = {
        name: os.environ[name] for name in ("HOME", "USER", "LOGNAME", "PATH") if name in os.environ
    }
    return {"PATH": os.defpath, **kept, "LANG": "C.UTF-8", "TERM": "xterm-256color"}
