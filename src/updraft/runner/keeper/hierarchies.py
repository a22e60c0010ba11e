"""Hierarchies of control groups: which there are, what this user may do there, and their groups.

v1 has a hierarchy for each controller or a few of them, v2 has one; a machine may have both, with
each controller in one of them.
"""

from __future__ import annotations

import fcntl
import os
import signal

from updraft.runner.keeper import controllers, processes

WANTED = ("memory", "pids", "cpu", "cpuacct")
"""In the order in which a command joins."""

PREFIX = "updraft-"
"""Our groups are named so, and with 16 hex digits."""

_DELEGATE = (
    "loginctl enable-linger, then start Updraft by systemd-run --user --scope -p Delegate=yes "
    "urun true"
)
_OWN = "start Updraft in one of its own, as systemd-run --scope -p Delegate=yes urun true does"

_DAEMONS = "updraft-daemons"
"""The group beside ours for Updraft's own processes, where v2 wants them out of the way."""


def members(folder: str) -> list[int]:
    try:
        return [int(pid) for pid in controllers.read(folder, "cgroup.procs").split()]
    except OSError:
        return []


def subgroups(folder: str) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]


def populated(folder: str) -> bool:
    """Whether there are processes in a group or in those below it."""
    below = (os.path.join(folder, name) for name in subgroups(folder))
    return bool(members(folder)) or any(populated(path) for path in below)


def kill_members(folder: str) -> None:
    try:
        controllers.write(folder, "cgroup.kill", 1)  # v2, since Linux 5.14
    except OSError:
        processes.signal_all([pid for pid in members(folder) if pid > 0], signal.SIGKILL)


def clear(folder: str) -> bool:
    """Kill what is in a group and the groups below it, and remove them.  True once it is gone.

    A group without process and group below it, but with memory charged to it, may be removed.
    """
    try:
        for name in subgroups(folder):
            clear(os.path.join(folder, name))
        kill_members(folder)
        os.rmdir(folder)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _is_ours(name: str) -> bool:
    digits = name.removeprefix(PREFIX)
    return name != digits and len(digits) == 16 and set(digits) <= set("0123456789abcdef")


def sweep(parent: str) -> None:
    """Remove the groups of keepers that died and were not started again (their folder is gone)."""
    for name in subgroups(parent):
        if not _is_ours(name):
            continue
        path = os.path.join(parent, name)
        try:
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            continue  # another user's, or gone
        try:
            if os.fstat(lock).st_uid == os.geteuid():
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                clear(path)
        except OSError:
            pass  # its keeper lives
        finally:
            os.close(lock)


class Tree:
    """One mounted hierarchy: the group that ours goes below, and the controllers that it gets."""

    def __init__(self, version: int, parent: str, names: tuple[str, ...]) -> None:
        self.version = version
        self.parent = parent
        self.controllers = names
        self._moved = False
        self._enabled: list[str] = []

    def open(self, name: str) -> int:
        """Make the group ``name`` and return the descriptor that locks it.

        Raises ``OSError`` when that is not allowed.
        """
        folder = os.path.join(self.parent, name)
        while True:
            os.mkdir(folder, 0o700)
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if os.path.exists(folder):
                break
            os.close(lock)  # somebody swept it before it was locked
        try:
            if self.version == 2:
                self._delegate(folder)
            elif "cpu" in self.controllers:
                # Here single processes compete with our group: it is to count as all CPUs do.
                controllers.write(folder, "cpu.shares", 1024 * (os.cpu_count() or 1))
        except OSError:
            os.close(lock)
            self.close()
            clear(folder)
            raise
        return lock

    def _delegate(self, folder: str) -> None:
        """Give our group, and through it the slots, the controllers."""
        root = not os.path.exists(os.path.join(self.parent, "cgroup.type"))
        ours = [] if root else members(self.parent)
        if ours:
            # Who was delegated this group keeps its processes in groups below it.
            daemons = os.path.join(self.parent, _DAEMONS)
            if not os.path.isdir(daemons):
                os.mkdir(daemons)
            self._moved = True
            for pid in ours:
                controllers.write(daemons, "cgroup.procs", pid)
        given = controllers.read(self.parent, "cgroup.subtree_control").split()
        for name in self.controllers:
            if name not in given:
                controllers.write(self.parent, "cgroup.subtree_control", f"+{name}")
                self._enabled.append(name)
        for name in self.controllers:
            controllers.write(folder, "cgroup.subtree_control", f"+{name}")
        if root and "cpu" in self.controllers:
            weight = min(10000, 100 * (os.cpu_count() or 1))
            controllers.write(folder, "cpu.weight", weight)

    def close(self) -> None:
        """Undo what ``open`` did beside the group itself, as far as others let us.

        Controllers stay enabled in a group that is not only ours: others may count on them by now.
        """
        if not self._moved:
            return
        daemons = os.path.join(self.parent, _DAEMONS)
        try:
            for name in self._enabled:
                controllers.write(self.parent, "cgroup.subtree_control", f"-{name}")
            for pid in members(daemons):
                controllers.write(self.parent, "cgroup.procs", pid)
            os.rmdir(daemons)
        except OSError:
            return  # another instance still needs it


# -- finding them


def find_trees() -> tuple[list[Tree], dict[str, str]]:
    """Return the hierarchies to use, and for each controller that none of them has, why."""
    lacking = dict.fromkeys(WANTED[:3], "this system has no such cgroup; boot it with cgroup v2")
    trees: list[Tree] = []
    try:
        mounts, own = _mounts(), _own_groups()
    except OSError:
        return trees, lacking
    for version, point, root, options in mounts:
        names = tuple(name for name in WANTED if name in options)
        path = own.get(names[0] if version == 1 and names else "")
        if path is None or (version == 1 and not names):
            continue
        if not (path + "/").startswith(root.rstrip("/") + "/"):
            continue  # mounted from a place that does not contain us
        folder = point + path[len(root.rstrip("/")) :].rstrip("/")
        why = ""
        if version == 2:
            folder, names, why = _usable_v2(point, folder)
        elif not os.access(folder, os.W_OK):
            why = _not_writable(folder, "only root or cgroup v2 can mend that")
        if not why and names:
            trees.append(Tree(version, folder, names))
            for name in names:
                lacking.pop(name, None)
        if version == 2:
            names = _available(point)
            why = why or _not_given(folder)
        lacking.update(dict.fromkeys(set(names) & set(lacking), why))
    trees.sort(key=lambda tree: WANTED.index(tree.controllers[0]))
    return trees, lacking


def find_devices_tree() -> Tree | None:
    """Return the v1 hierarchy that says which devices may be opened, None where there is none.

    Apart from the others: only tasks that are isolated join it.
    """
    try:
        mounts, own = _mounts(), _own_groups()
    except OSError:
        return None
    for version, point, root, options in mounts:
        path = own.get("devices", "")
        if version == 1 and "devices" in options and path.startswith(root.rstrip("/")):
            folder = point + path[len(root.rstrip("/")) :].rstrip("/")
            if os.access(folder, os.W_OK):
                return Tree(1, folder, ("devices",))
    return None


def _mounts() -> list[tuple[int, str, str, list[str]]]:
    """Return ``(version, mount point, its root, controllers)`` of each hierarchy once."""
    found: dict[str, tuple[int, str, str, list[str]]] = {}
    with open("/proc/self/mountinfo") as file:
        for line in file:
            fields, _, system = line.rstrip("\n").partition(" - ")
            kind, _, options = system.split(" ", 2)
            if kind not in ("cgroup", "cgroup2"):
                continue
            device, root, point = fields.split(" ")[2:5]
            version = 2 if kind == "cgroup2" else 1
            found.setdefault(device, (version, point, root, options.split(",")))
    return list(found.values())


def _own_groups() -> dict[str, str]:
    """Return this process's group by controller; that of v2 by ``""``."""
    groups: dict[str, str] = {}
    with open("/proc/self/cgroup") as file:
        for line in file:
            _, names, path = line.rstrip("\n").split(":", 2)
            groups.update(dict.fromkeys(names.split(","), path))
    return groups


def _usable_v2(point: str, own: str) -> tuple[str, tuple[str, ...], str]:
    """Return the nearest group from ``own`` upwards that can hold ours, its controllers, and why
    there is none.
    """
    if any(_is_ours(part) for part in own.split("/")):
        return own, (), "it runs in a task of another Updraft; limit that one"
    folder, why = own, ""
    if os.path.basename(own) == _DAEMONS:
        folder = os.path.dirname(own)
    while True:
        if not (os.access(folder, os.W_OK) and _writable(folder)):
            return folder, (), why or _not_writable(folder, _DELEGATE)
        here = _available(folder)
        given = controllers.read(folder, "cgroup.subtree_control").split()
        if here and (set(here) <= set(given) or _may_have_groups(folder)):
            return folder, here, ""
        why = why or f"other processes share the cgroup {folder}; {_OWN}"
        if folder == point:
            return folder, (), why
        folder = os.path.dirname(folder)


def _not_writable(folder: str, mend: str) -> str:
    if os.statvfs(folder).f_flag & os.ST_RDONLY:
        return f"{folder} is read-only; mount it writable in this container"
    return f"the cgroup {folder} is not this user's; {mend}"


def _not_given(folder: str) -> str:
    unit = os.path.basename(folder)
    return (
        f"the cgroup {folder} has no such controller; systemctl set-property {unit} CPUWeight=100"
    )


def _available(folder: str) -> tuple[str, ...]:
    try:
        there = controllers.read(folder, "cgroup.controllers").split()
    except OSError:
        return ()
    return tuple(name for name in WANTED if name in there)


def _writable(folder: str) -> bool:
    names = ("cgroup.procs", "cgroup.subtree_control")
    return all(os.access(os.path.join(folder, name), os.W_OK) for name in names)


def _may_have_groups(folder: str) -> bool:
    """Whether controllers can be given to groups below: no process is in the way."""
    if not os.path.exists(os.path.join(folder, "cgroup.type")):
        return True  # the machine's root group is exempt
    if set(members(folder)) <= {os.getpid()}:
        return True
    try:  # systemd marks what it delegates: then all processes in it are ours to move
        return os.getxattr(folder, "user.delegate") == b"1"
    except OSError:
        return False
