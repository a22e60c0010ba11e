"""Temporary folders of isolated tasks: each task's own, on disk, and gone when it has ended.

They lie in the runner's folder ``private``, which nobody but root may enter; the task sees its own
as /tmp and /var/tmp.
"""

from __future__ import annotations

import os
import signal


def folder_of(runner: str, attempt: int) -> str:
    """Return where a task's temporary folders are."""
    return os.path.join(runner, "private", str(attempt))


def left_over(runner: str) -> list[str]:
    """Return the folders of tasks that are no more: there is no keeper yet that has any."""
    folder = os.path.join(runner, "private")
    try:
        return [os.path.join(folder, name) for name in os.listdir(folder)]
    except FileNotFoundError:
        return []


def make(runner: str, attempt: int) -> bytes:
    """Make a task's temporary folders; return where they are.  Raises ``OSError``."""
    path = folder_of(runner, attempt)
    os.makedirs(path, mode=0o700, exist_ok=True)
    for name in ("tmp", "var-tmp"):
        folder = os.path.join(path, name)
        os.mkdir(folder)
        os.chmod(folder, 0o1777)  # noqa: S103 - below one of mode 0700
    return os.fsencode(path)


def remove_if_empty(path: str) -> bool:
    """Remove a task's temporary folders if they are empty.  False if it takes longer."""
    try:
        for name in ("tmp", "var-tmp"):
            try:
                os.rmdir(os.path.join(path, name))
            except FileNotFoundError:
                continue
        os.rmdir(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def remove_aside(paths: list[str]) -> set[int]:
    """Remove tasks' folders in a process of its own; return that process, if there is one."""
    if not paths:
        return set()
    try:
        pid = os.fork()
    except OSError:
        return set()  # the next keeper will
    if pid:
        return {pid}
    try:
        signal.set_wakeup_fd(-1)
        os.closerange(3, 1 << 20)
        for path in paths:
            remove_below(path)
            remove_if_empty(path)
    finally:
        os._exit(0)


def remove_below(path: str) -> None:
    """Remove what is in a folder, whoever made it: follows no link, and survives any depth."""
    try:
        top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return
    _empty(top, top)
    os.close(top)


def _empty(top: int, folder: int) -> None:
    # A folder in a folder is brought to the top first: no path grows, and no recursion either.
    again = True
    while again:
        again = False
        with os.scandir(folder) as entries:
            found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        for name, is_folder in found:
            try:
                if not is_folder:
                    os.unlink(name, dir_fd=folder)
                    continue
                try:
                    os.rmdir(name, dir_fd=folder)
                    continue
                except OSError:
                    pass
                if _lift(top, folder, name):
                    again = True
            except OSError:
                continue


def _lift(top: int, folder: int, name: str) -> bool:
    """Unlink the files of ``folder/name`` and move its folders to the top; remove it."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    inner = os.open(name, flags, dir_fd=folder)
    moved = False
    try:
        with os.scandir(inner) as entries:
            found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        for child, is_folder in found:
            if is_folder:
                fresh = "gone-" + os.urandom(8).hex()
                os.rename(child, fresh, src_dir_fd=inner, dst_dir_fd=top)
                moved = True
            else:
                os.unlink(child, dir_fd=inner)
    finally:
        os.close(inner)
    os.rmdir(name, dir_fd=folder)
    return moved
