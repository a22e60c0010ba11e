"""Slots: control groups that are made once and hold one task after another.

Making and removing a group for each task would cost half the throughput of launching.  A slot's
command joins it before it becomes the user's program; its leader stays outside, so that it is there
to tell how the command ended when memory ran out.

All lies in one group of this keeper's own, ``updraft-<16 hex digits>``, below the group that the
keeper was started in, so that limits which somebody put on Updraft hold for its tasks too.  Under
v2 a group with processes cannot have groups with controllers, so there it may be the next group
above that allows it.  Whoever finds a group whose lock nobody holds ends and removes it: its keeper
is dead.

Where there are no cgroups, or none that this user may use, tasks run without limits, and
``describe`` says so.  Limits and measures of a slot are in ``controllers``.
"""

from __future__ import annotations

import os
import time

from updraft.runner.keeper import controllers, hierarchies
from updraft.wire.packing import PackingError, pack, unpack_dict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from updraft.runner.keeper.devices import Devices, DevicesV1, DevicesV2

READY_SLOTS = 2
"""Slots made ahead of need, as leaders are: a launch makes none."""

MOST_IDLE_SLOTS = 16
"""What is kept for the next rush; a group costs the kernel memory on every CPU."""

_AGAIN_SECONDS = 0.05
_END_SECONDS = 5.0


class Slots:
    """The slots of one keeper.

    ``folder`` is the runner's: its file ``cgroups`` names the groups, so that a keeper ends what
    lives in a killed predecessor's.
    """

    def __init__(self, folder: str, *, wanted: bool = True) -> None:
        self._record = os.path.join(folder, "cgroups")
        self._wanted = wanted
        self._limits_devices = False
        self._end_predecessor()
        self._name = hierarchies.PREFIX + os.urandom(8).hex()
        self._trees, self._lacking = (
            hierarchies.find_trees()
            if wanted
            else ([], {"all": "switched off; set runner.cgroups = true"})
        )
        self._locks: list[int] = []
        self._idle: list[Slot] = []
        self._used: list[Slot] = []
        self._retired: list[Slot] = []
        self._count = 0
        self._swept = False
        self.again_at: float | None = 0.0
        """When ``tidy`` has something to do (monotonic seconds), None for never."""
        self._open()

    @property
    def enforced(self) -> frozenset[str]:
        """The controllers that slots have: of ``memory``, ``pids``, ``cpu``, ``cpuacct``."""
        return frozenset(name for tree in self._trees for name in tree.controllers)

    # -- a task

    def take(self, memory_bytes: int, cpus_milli: int) -> Slot | None:
        """Return an empty slot with these limits (0 bytes: none), None where there are none."""
        if not self._trees:
            return None
        if not self._idle:
            self._recycle()
        slot = self._fitting(memory_bytes)
        try:
            if slot is not None:
                self._idle.remove(slot)
                try:
                    slot.limit(memory_bytes, cpus_milli)
                    return slot
                except OSError:  # what is left in it does not fit
                    self._retired.append(slot)
            slot = self._make()
            try:
                slot.limit(memory_bytes, cpus_milli)
            except OSError:
                self._retired.append(slot)
                raise
            return slot
        except OSError:
            return None

    def _fitting(self, memory_bytes: int) -> Slot | None:
        """Return the idle slot that takes the least to prepare."""
        best = None
        for slot in self._idle:
            if slot.memory_bytes == memory_bytes:
                return slot
            # Lowering a limit to what is in use makes the kernel reclaim while the task waits.
            if memory_bytes == 0 or slot.leftover_bytes < memory_bytes // 4:
                best = slot
        return best

    def give_back(self, slot: Slot) -> None:
        """Take a slot back once its task's processes are gone, or are to go."""
        self._used.append(slot)
        self.again_at = 0.0

    def limit_devices(self) -> None:
        """From now on make slots that can limit which devices a task may open."""
        tree = hierarchies.find_devices_tree() if self._wanted else None
        if tree is None or self._limits_devices:
            return
        self._limits_devices = True
        try:
            self._write_record([os.path.join(tree.parent, self._name)])
            self._locks.append(tree.open(self._name))
        except OSError:
            return
        self._trees.append(tree)
        self._swept = False
        self._retired += self._idle
        self._idle = []
        self.again_at = 0.0

    # -- while nothing waits

    def tidy(self) -> None:
        """Empty and reset what was given back, make slots ahead of need, remove what is too much.

        Takes well under a millisecond, and never waits.
        """
        if self.again_at is None or self.again_at > time.monotonic():
            return
        self.again_at = None
        if not self._trees:
            return
        self._recycle()
        try:
            while len(self._idle) < READY_SLOTS:
                self._idle.append(self._make())
        except OSError:
            pass  # none ahead of need then; `take` tries again
        while len(self._idle) > MOST_IDLE_SLOTS:
            worst = max(self._idle, key=lambda slot: slot.leftover_bytes)
            self._idle.remove(worst)
            self._retired.append(worst)
        self._retired = [slot for slot in self._retired if not slot.remove()]
        if self._used or self._retired:
            self.again_at = time.monotonic() + _AGAIN_SECONDS
        if not self._swept:
            self._swept = True
            for tree in self._trees:
                hierarchies.sweep(tree.parent)

    def _recycle(self) -> None:
        left: list[Slot] = []
        for slot in self._used:
            try:
                if not slot.reset():
                    left.append(slot)
                elif slot.spoiled:
                    self._retired.append(slot)
                else:
                    self._idle.append(slot)
            except OSError:
                self._retired.append(slot)
        self._used = left

    # -- beginning and end

    def _end_predecessor(self) -> None:
        """End what lives in the slots of an earlier keeper of this runner, and remove them."""
        try:
            with open(self._record, "rb") as file:
                paths = unpack_dict(file.read())["groups"]
        except (OSError, PackingError, KeyError, IndexError):
            return
        deadline = time.monotonic() + _END_SECONDS
        while paths and time.monotonic() < deadline:
            paths = [path for path in paths if not hierarchies.clear(path)]
            if paths:
                time.sleep(0.002)

    def _open(self) -> None:
        """Make this keeper's own group in each tree; a tree that does not allow it is left out."""
        try:
            self._write_record()  # the intent first: who comes after us finds what we made
        except OSError as error:
            # On a full disk a keeper must start all the same: without groups, then.
            self._lacking |= dict.fromkeys(self.enforced, f"{self._record}: {error.strerror}")
            self._trees = []
            return
        for tree in list(self._trees):
            try:
                self._locks.append(tree.open(self._name))
            except OSError as error:
                self._trees.remove(tree)
                for name in tree.controllers:
                    self._lacking[name] = f"{tree.parent}: {error.strerror}"
        try:
            self._write_record()
        except OSError:
            pass  # the disk filled up meanwhile: the first one names all groups

    def _write_record(self, more: list[str] | None = None) -> None:
        groups = [os.path.join(tree.parent, self._name) for tree in self._trees]
        body = {
            "groups": [*groups, *(more or [])],
            "enforced": sorted(self.enforced),
            "lacking": self._lacking,
        }
        with open(self._record + ".new", "wb") as file:
            file.write(pack(body))
        os.rename(self._record + ".new", self._record)

    def _make(self) -> Slot:
        self._count += 1
        return Slot(self._trees, os.path.join(self._name, f"slot-{self._count}"))

    def close(self) -> None:
        """Remove all slots: the keeper leaves, and its tasks have ended."""
        for slot in [*self._idle, *self._used, *self._retired]:
            slot.close()
        deadline = time.monotonic() + _END_SECONDS
        for tree in self._trees:
            while (
                not hierarchies.clear(os.path.join(tree.parent, self._name))
                and time.monotonic() < deadline
            ):
                time.sleep(0.002)
            tree.close()
        for lock in self._locks:
            os.close(lock)
        self._trees = []
        try:
            os.unlink(self._record)
        except FileNotFoundError:
            return


class Slot:
    """One group in each hierarchy.  ``name`` is its path below each tree's parent."""

    def __init__(self, trees: list[hierarchies.Tree], name: str) -> None:
        self.folders = [os.path.join(tree.parent, name) for tree in trees]
        self._controllers: list[controllers.Controller] = []
        self._memory: controllers.MemoryV1 | controllers.MemoryV2 | None = None
        self._pids: controllers.Processes | None = None
        self._devices: DevicesV1 | DevicesV2 | None = None
        self._group_at = 0  # which folder is v2's
        self.entries: list[int] = []
        """Descriptors for joining: see ``processes.fork_into`` and ``join``."""
        self.cloned = False
        """Whether the first two entries are a v2 directory to be cloned into, and its file."""
        try:
            for tree, folder in zip(trees, self.folders, strict=True):
                os.mkdir(folder)
                self._open(tree, folder)
            for controller in self._controllers:
                controller.reset()
        except OSError:
            self.remove()
            raise

    def _open(self, tree: hierarchies.Tree, folder: str) -> None:
        flags = os.O_WRONLY | os.O_CLOEXEC
        if tree.version == 2:
            directory = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            self.entries.insert(0, os.open(folder, directory))
            self.entries.insert(1, os.open(os.path.join(folder, "cgroup.procs"), flags))
            self._group_at = self.folders.index(folder)
            self.cloned = True
            self._controllers.append(controllers.CpuTime(folder, 2))
        else:
            # Writing 0 to `tasks` moves one thread at once; `cgroup.procs` takes a lock that
            # waits for a grace period of RCU, 8 ms and more.
            self.entries.append(os.open(os.path.join(folder, "tasks"), flags))
        for name in tree.controllers:
            if name == "memory":
                make = controllers.MemoryV1 if tree.version == 1 else controllers.MemoryV2
                self._memory = make(folder)
                self._controllers.append(self._memory)
            elif name == "pids":
                self._pids = controllers.Processes(folder)
                self._controllers.append(self._pids)
            elif name == "cpu":
                shares = controllers.shares_v1 if tree.version == 1 else controllers.shares_v2
                self._controllers.append(shares(folder))
            elif name == "cpuacct":
                self._controllers.append(controllers.CpuTime(folder, 1))
            elif name == "devices":
                from updraft.runner.keeper.devices import DevicesV1  # noqa: PLC0415

                self._devices = DevicesV1(folder)

    @property
    def memory_bytes(self) -> int:
        """The memory limit that is set, 0 for none."""
        return self._memory.limit_bytes if self._memory is not None else 0

    @property
    def limits_memory(self) -> bool:
        """Whether it can limit memory."""
        return self._memory is not None

    @property
    def leftover_bytes(self) -> int:
        """What earlier tasks left charged to it."""
        return self._memory.leftover_bytes if self._memory is not None else 0

    @property
    def spoiled(self) -> bool:
        """Whether earlier tasks left memory that cannot be reclaimed."""
        return self._memory is not None and self._memory.spoiled

    def limit(self, memory_bytes: int, cpus_milli: int) -> None:
        """Set the limits of the next task.  Raises ``OSError``."""
        for controller in self._controllers:
            controller.limit(memory_bytes, cpus_milli)

    def limit_devices(self, allowed: Devices | None) -> bool:
        """Let the next task open these devices only, or all.  Returns whether that holds.

        If it does not, a task still has only the devices that it sees, and can make none.
        """
        try:
            if self._devices is None and self.cloned:
                from updraft.runner.keeper.devices import DevicesV2  # noqa: PLC0415

                self._devices = DevicesV2(self.folders[self._group_at])
            if self._devices is not None:
                self._devices.allow(allowed)
        except OSError:
            return allowed is None
        return self._devices is not None or allowed is None

    def usage(self) -> dict[str, Any]:
        """Return what the task used: what of this the kernel can tell.

        ``peak_memory_bytes``, ``cpu_ns``; ``oom_kills`` and ``out_of_memory`` (``limit`` or
        ``machine``: whose memory was full) if processes were killed for want of memory.
        """
        usage: dict[str, Any] = {}
        for controller in self._controllers:
            try:
                controller.measure(usage)
            except (OSError, ValueError):
                continue
        return usage

    def reset(self) -> bool:
        """Prepare it for the next task.  False while processes are left: they are killed."""
        if not self._empty():
            self._kill()
            if not self._empty():
                return False
        for controller in self._controllers:
            controller.reset()
        return True

    def _empty(self) -> bool:
        if self._pids is not None and self._pids.count() == 0:
            return True  # the cheap way; a process that nobody waits for still counts there
        return not any(hierarchies.populated(folder) for folder in self.folders)

    def _kill(self) -> None:
        if self._pids is not None:
            self._pids.stop_forks()
        for folder in self.folders:
            for name in hierarchies.subgroups(folder):
                hierarchies.clear(os.path.join(folder, name))
            hierarchies.kill_members(folder)

    def remove(self) -> bool:
        """Remove its groups.  False while processes are left: they are killed."""
        self.close()
        self.folders = [folder for folder in self.folders if not hierarchies.clear(folder)]
        return not self.folders

    def close(self) -> None:
        """Close its files."""
        for entry in self.entries:
            os.close(entry)
        for controller in self._controllers:
            controller.close()
        if self._devices is not None:
            self._devices.close()
        self.entries.clear()
        self._controllers.clear()
        self._memory = self._pids = self._devices = None


def describe(folder: str) -> list[tuple[str, bool, str]]:
    """Return ``(what, whether it holds, a sentence)`` about the limits of a runner's tasks.

    A sentence is ``what is so`` or ``what is so; how to mend it``.  ``folder`` is the runner's.
    Where no keeper runs, tells what one would find.
    """
    try:
        with open(os.path.join(folder, "cgroups"), "rb") as file:
            body = unpack_dict(file.read())
        enforced, lacking = set(body["enforced"]), body["lacking"]
    except (OSError, PackingError, KeyError, IndexError):
        trees, lacking = hierarchies.find_trees()
        enforced = {name for tree in trees for name in tree.controllers}
    found = [
        (
            "ending every process of a task, also when keeper and leader are killed at once",
            bool(enforced),
            "by cgroups" if enforced else "not then: there is no cgroup that tells which they are",
        )
    ]
    for name, what in (
        ("memory", "memory limits"),
        ("pids", "process limits"),
        ("cpu", "CPU shares"),
    ):
        if name in enforced:
            found.append((what, True, "enforced by cgroups"))
        else:
            why = lacking.get(name) or lacking.get("all", "there is no cgroup")
            found.append((what, False, f"not enforced: {why}"))
    return found
