"""The kernel's control files of one slot: what each controller limits and measures, v1 and v2.

A slot is used by one task after another, so each controller tells what *this* task did: counters
that only grow are compared with what they were, peaks are set back, and what an earlier task left
in the slot (page cache, which stays charged to whoever read the file first) is taken off.

Sources: the kernel's Documentation/admin-guide/cgroup-v1 and cgroup-v2.rst.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    class Controller(Protocol):
        """One controller's files in one slot."""

        def limit(self, memory_bytes: int, cpus_milli: int) -> None:
            """Set what a task may use; writes only what differs.  Raises ``OSError``."""

        def measure(self, usage: dict[str, Any]) -> None:
            """Add what the task has used since ``reset``."""

        def reset(self) -> None:
            """Begin to count for the next task."""

        def close(self) -> None:
            """Let go of the files."""


_DEFAULT_CPUS_MILLI = 1000
"""What a task that asks for no CPU weighs (an open shell): as much as one that asks for one."""

_SPOILED_BYTES = 1 << 20
"""Files in memory (``/dev/shm``, ``/tmp``) that a task left count against every later one."""


class _File:
    """A control file that is kept open: opening costs more than reading."""

    def __init__(self, folder: str, name: str, flags: int = os.O_RDONLY) -> None:
        self._fd = -1
        self._fd = os.open(os.path.join(folder, name), flags | os.O_CLOEXEC)

    def __del__(self) -> None:
        self.close()  # where its controller could not open the next one

    def read(self) -> bytes:
        return os.pread(self._fd, 4096, 0)

    def number(self) -> int:
        return int(self.read())

    def write(self, text: bytes) -> None:
        os.pwrite(self._fd, text, 0)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def write(folder: str, name: str, text: object) -> None:
    """Write a control file.  Raises ``OSError``."""
    fd = os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, str(text).encode())
    finally:
        os.close(fd)


def read(folder: str, name: str) -> str:
    """Return a control file's content.  Raises ``OSError``."""
    with open(os.path.join(folder, name)) as file:
        return file.read()


def _field(text: bytes, name: bytes) -> int | None:
    """Return the value of a line ``name value``, None when there is none."""
    for line in text.splitlines():
        key, _, value = line.partition(b" ")
        if key == name:
            return int(value)
    return None


def _shared_bytes(folder: str) -> int:
    """Return what no reclaim takes away from a group without processes: files in memory."""
    with open(os.path.join(folder, "memory.stat"), "rb") as file:
        return _field(file.read(), b"shmem") or 0


def _raises(old: int, new: int) -> bool:
    """Whether a limit goes up; 0 means none."""
    return old != 0 and (new == 0 or new > old)


class MemoryV1:
    """Memory with swap: a limit of 512 MiB is 512 MiB in all, whatever the machine swaps."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._peak = _File(folder, "memory.max_usage_in_bytes", os.O_RDWR)
        self._events = _File(folder, "memory.oom_control")
        self._swap = os.path.exists(os.path.join(folder, "memory.memsw.limit_in_bytes"))
        self._kills = self._count()
        self.limit_bytes = 0
        self.leftover_bytes = 0
        self.spoiled = False

    def limit(self, memory_bytes: int, cpus_milli: int) -> None:
        if memory_bytes == self.limit_bytes:
            return
        names = ["memory.limit_in_bytes"]
        if self._swap:
            names.append("memory.memsw.limit_in_bytes")  # never below the one without swap
        if _raises(self.limit_bytes, memory_bytes):
            names.reverse()
        for name in names:
            write(self._folder, name, memory_bytes or -1)
        self.limit_bytes = memory_bytes

    def measure(self, usage: dict[str, Any]) -> None:
        peak = self._peak.number()
        before, self._kills = self._kills, self._count()
        kills = self._kills - before
        # Near it is at it: the kernel charges in batches, and `memory.failcnt` stays 0 on some.
        reached = 0 < self.limit_bytes <= peak + peak // 16
        # At the limit the kernel gave up the leftover first.
        usage["peak_memory_bytes"] = peak if reached else max(0, peak - self.leftover_bytes)
        if kills > 0:
            usage["oom_kills"] = kills
            usage["out_of_memory"] = "limit" if reached else "machine"

    def _count(self) -> int:
        return _field(self._events.read(), b"oom_kill") or 0  # since Linux 4.13

    def reset(self) -> None:
        self._peak.write(b"0")  # to what is in use now
        self.leftover_bytes = self._peak.number()
        self.spoiled = (
            self.leftover_bytes > _SPOILED_BYTES and _shared_bytes(self._folder) > _SPOILED_BYTES
        )

    def close(self) -> None:
        self._peak.close()
        self._events.close()


class MemoryV2:
    """Memory; a limited task does not swap."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._events = _File(folder, "memory.events")
        self._current = _File(folder, "memory.current")
        self._swap = os.path.exists(os.path.join(folder, "memory.swap.max"))
        self._peak: _File | None = None  # since Linux 5.19
        self._resets = False  # since Linux 6.12, for who reads through the same descriptor
        try:
            self._peak = _File(folder, "memory.peak", os.O_RDWR)
            self._peak.write(b"0")
            self._resets = True
        except OSError:
            if self._peak is None and os.path.exists(os.path.join(folder, "memory.peak")):
                self._peak = _File(folder, "memory.peak")
        self._peak_before = 0
        self._before: tuple[int, ...] = (0, 0, 0)
        self.limit_bytes = 0
        self.leftover_bytes = 0
        self.spoiled = False

    def limit(self, memory_bytes: int, cpus_milli: int) -> None:
        if memory_bytes == self.limit_bytes:
            return
        if self._swap:
            write(self._folder, "memory.swap.max", 0 if memory_bytes else "max")
        write(self._folder, "memory.max", memory_bytes or "max")
        self.limit_bytes = memory_bytes

    def measure(self, usage: dict[str, Any]) -> None:
        now = self._counts()
        reached, full, kills = (new - old for new, old in zip(now, self._before, strict=True))
        if self._peak is not None:
            peak = self._peak.number()
            # Where it cannot be set back, an unchanged peak is an earlier task's: this one's is
            # not known.
            if self._resets or peak > self._peak_before:
                leftover = 0 if reached else self.leftover_bytes
                usage["peak_memory_bytes"] = max(0, peak - leftover)
        if kills > 0:
            usage["oom_kills"] = kills
            usage["out_of_memory"] = "limit" if full else "machine"

    def _counts(self) -> tuple[int, ...]:
        """How often: the limit was reached, nothing was left to reclaim, a process was killed."""
        events = self._events.read()
        return tuple(_field(events, name) or 0 for name in (b"max", b"oom", b"oom_kill"))

    def reset(self) -> None:
        self._before = self._counts()
        if self._peak is not None:
            if self._resets:
                self._peak.write(b"0")
            self._peak_before = self._peak.number()
        self.leftover_bytes = self._current.number()
        self.spoiled = (
            self.leftover_bytes > _SPOILED_BYTES and _shared_bytes(self._folder) > _SPOILED_BYTES
        )

    def close(self) -> None:
        for file in (self._events, self._current, self._peak):
            if file is not None:
                file.close()


class Processes:
    """A bound against fork bombs, the same for every task.  v1 and v2."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._bound = process_bound()
        self._current = _File(folder, "pids.current")
        write(folder, "pids.max", self._bound)
        self._stopped = False

    def count(self) -> int:
        """Return how many threads there are in it and in groups below, dead ones not waited for."""
        return self._current.number()

    def stop_forks(self) -> None:
        """Let no process of the slot fork: who is to be killed cannot run ahead of it."""
        self._stopped = True
        write(self._folder, "pids.max", 0)

    def limit(self, memory_bytes: int, cpus_milli: int) -> None:
        """Nothing: no task asks for processes."""

    def measure(self, usage: dict[str, Any]) -> None:
        """Nothing that is kept."""

    def reset(self) -> None:
        if self._stopped:
            write(self._folder, "pids.max", self._bound)
            self._stopped = False

    def close(self) -> None:
        self._current.close()


def process_bound() -> int:
    """Return how many processes a task may have: many, but no more than a quarter of all."""
    most = 32768
    for name in ("pid_max", "threads-max"):
        try:
            most = min(most, int(read("/proc/sys/kernel", name)) // 4)
        except (OSError, ValueError):
            continue
    return most


class Shares:
    """CPU time in proportion to the CPUs asked for, when there is not enough for all.

    Not a quota: what nobody else wants may be used, as locally.  ``name``, ``per_cpu`` and
    ``bounds`` are those of ``cpu.shares`` (v1) or ``cpu.weight`` (v2).
    """

    def __init__(self, folder: str, name: str, per_cpu: int, bounds: tuple[int, int]) -> None:
        self._folder = folder
        self._name = name
        self._per_cpu = per_cpu
        self._bounds = bounds
        self._cpus_milli = _DEFAULT_CPUS_MILLI  # a new group's

    def limit(self, memory_bytes: int, cpus_milli: int) -> None:
        cpus_milli = cpus_milli or _DEFAULT_CPUS_MILLI
        if cpus_milli == self._cpus_milli:
            return
        low, high = self._bounds
        value = min(high, max(low, self._per_cpu * cpus_milli // 1000))
        write(self._folder, self._name, value)
        self._cpus_milli = cpus_milli

    def measure(self, usage: dict[str, Any]) -> None:
        """Nothing: CPU time is counted elsewhere."""

    def reset(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing is kept open."""


def shares_v1(folder: str) -> Shares:
    """Return the controller ``cpu`` of v1."""
    return Shares(folder, "cpu.shares", 1024, (2, 262144))


def shares_v2(folder: str) -> Shares:
    """Return the controller ``cpu`` of v2."""
    return Shares(folder, "cpu.weight", 100, (1, 10000))


class CpuTime:
    """CPU time of all processes, also of those that nobody waited for."""

    def __init__(self, folder: str, version: int) -> None:
        self._version = version
        self._file = _File(folder, "cpuacct.usage" if version == 1 else "cpu.stat")
        self._before = 0

    def limit(self, memory_bytes: int, cpus_milli: int) -> None:
        """Nothing: a count has no limit."""

    def measure(self, usage: dict[str, Any]) -> None:
        usage["cpu_ns"] = self._now() - self._before

    def _now(self) -> int:
        if self._version == 1:
            return self._file.number()
        return (_field(self._file.read(), b"usage_usec") or 0) * 1000

    def reset(self) -> None:
        self._before = self._now()

    def close(self) -> None:
        self._file.close()
