"""What the keeper and its leaders ask of the kernel about processes.

A *subreaper* adopts every orphan below it, so its descendants are all that its tasks ever started,
``setsid`` and double forks included; when it has no child left, nothing of the task is left.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct

from updraft.settings import BACKGROUND_MARK

_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NAME = 15
_SYS_CLONE3 = 435  # the same number on all architectures of Linux that Python runs on
_CLONE_INTO_CGROUP = 0x200000000
_CLONE_ARGS = struct.Struct("=11Q")


def wake_pipe() -> tuple[int, int]:
    """Return a pipe for ``signal.set_wakeup_fd``: neither end ever blocks."""
    read, write = os.pipe()
    os.set_blocking(read, False)
    os.set_blocking(write, False)
    return read, write


def become_subreaper() -> bool:
    """Adopt the orphans among our descendants.  False where the system cannot (macOS)."""
    return _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def set_name(name: str) -> None:
    """Show ``name`` (15 bytes at most) as this process's name in ``ps`` and ``top``."""
    _prctl(_PR_SET_NAME, name.encode()[:15] + b"\0")


def _prctl(option: int, argument: int | bytes) -> bool:
    try:
        prctl = libc().prctl
    except AttributeError:
        return False
    return bool(prctl(option, argument, 0, 0, 0) == 0)


_LIBC: list[ctypes.CDLL] = []


def libc() -> ctypes.CDLL:
    """Return the C library, for what Python has no function for."""
    if not _LIBC:
        _LIBC.append(ctypes.CDLL(None, use_errno=True))
    return _LIBC[0]


def fork_into(entries: list[int]) -> tuple[int, list[int]]:
    """Fork a child into a v2 control group; return ``os.fork``'s answer and what is left to join.

    ``entries`` are descriptors: the group's directory, its ``cgroup.procs``, then others to join by
    writing 0 to them.  A child that is born in a group needs no move there: that takes a lock which
    waits for a grace period of RCU, 8 ms and more.  For processes with one thread only, since
    the C library's and Python's own preparations for a fork are passed over.
    """
    directory, procs, *others = entries
    arguments = _CLONE_ARGS.pack(
        _CLONE_INTO_CGROUP, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, directory
    )
    # PyDLL: the interpreter's lock stays ours, in the child too.
    pid = ctypes.PyDLL(None).syscall(_SYS_CLONE3, arguments, _CLONE_ARGS.size)
    if pid >= 0:
        return pid, others
    return os.fork(), [procs, *others]  # before Linux 5.7, or in a sandbox that forbids it


def descendants(root: int) -> list[int]:
    """Return the process ids below ``root``, parents before their children.

    The answer is a moment old: a process that forks meanwhile is met on the next call.
    """
    return _below([root], _children())


def orphans(forked: set[int]) -> list[int]:
    """Return the processes that came to this one, their subreaper, when their parents ended.

    Those that it ``forked`` itself are none, with all below them; nor is a background process of
    Updraft's that one of them started.
    """
    children = _children()
    adopted = [
        pid
        for pid in children.get(os.getpid(), ())
        if pid not in forked and not has_variable(pid, BACKGROUND_MARK)
    ]
    return adopted + _below(adopted, children)


def _children() -> dict[int, list[int]]:
    children: dict[int, list[int]] = {}
    try:
        entries = os.listdir("/proc")
    except FileNotFoundError:
        return _children_by_ps()
    for entry in entries:
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat", "rb") as stat:
                fields = stat.read()
        except OSError:
            continue
        # "pid (name) state ppid …"; the name may hold spaces and parentheses
        parent = int(fields[fields.rindex(b")") + 4 :].split(b" ", 1)[0])
        children.setdefault(parent, []).append(int(entry))
    return children


def _children_by_ps() -> dict[int, list[int]]:
    """Where there is no /proc (macOS)."""
    import subprocess  # noqa: PLC0415 - only there

    listing = subprocess.run(
        ["/bin/ps", "-axo", "pid=,ppid="], capture_output=True, text=True, check=False
    )
    children: dict[int, list[int]] = {}
    for line in listing.stdout.splitlines():
        pid, parent = line.split()
        children.setdefault(int(parent), []).append(int(pid))
    return children


def _below(roots: list[int], children: dict[int, list[int]]) -> list[int]:
    found: list[int] = []
    layer = roots
    while layer := [child for pid in layer for child in children.get(pid, ())]:
        found += layer
    return found


def signal_all(pids: list[int], number: int) -> None:
    """Send a signal to each process; one that is gone or not ours is passed over."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError):
            continue


def end_descendants(number: int = signal.SIGTERM, spared: frozenset[int] = frozenset()) -> None:
    """Ask all below this process to end; a stopped one is continued so that it can hear it."""
    pids = [pid for pid in descendants(os.getpid()) if pid not in spared]
    signal_all(pids, number)
    if number != signal.SIGKILL:
        signal_all(pids, signal.SIGCONT)


def start_time(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None when it is gone.

    With the boot id this names a process for good, where its number alone may be reused.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            fields = stat.read()
    except OSError:
        return None
    return int(fields[fields.rindex(b")") + 2 :].split()[19])


def has_variable(pid: int, name: str) -> bool:
    """Whether a process was started with ``name`` in its environment."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as environ:
            entries = environ.read().split(b"\0")
    except OSError:
        return False
    return any(entry.startswith(name.encode() + b"=") for entry in entries)


def boot_id() -> str:
    """Return the identity of this boot of the machine, empty where the system has none."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return ""


class StorageCounts:
    """What this process and all children that it waited for read from storage and wrote to it.

    Counted where a page is dirtied, so that buffered writes are their writer's (a v1 control group
    counts them as the kernel's).
    """

    def __init__(self) -> None:
        try:
            self._fd = os.open("/proc/self/io", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._fd = -1

    def read(self) -> tuple[int, int] | None:
        """Return bytes read and bytes written, None where the kernel cannot tell."""
        try:
            counts = dict(line.split(b": ") for line in os.pread(self._fd, 4096, 0).splitlines())
            return int(counts[b"read_bytes"]), int(counts[b"write_bytes"])
        except (OSError, KeyError, ValueError):
            return None


def resident_bytes(pid: int | str = "self") -> int | None:
    """Return a process's peak resident memory (VmHWM), None where the kernel cannot tell."""
    try:
        with open(f"/proc/{pid}/status", "rb") as status:
            for line in status:
                if line.startswith(b"VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None
