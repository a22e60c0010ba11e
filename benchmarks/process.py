"""What the kernel says about a process: memory, CPU time, children. Read from /proc (Linux)."""

import os
from pathlib import Path


def resident_bytes(pid: int) -> int:
    """The memory that the process has resident now, shared pages included."""
    return _status_bytes(pid, "VmRSS")


def peak_resident_bytes(pid: int) -> int:
    """The most memory that the process ever had resident."""
    return _status_bytes(pid, "VmHWM")


def proportional_bytes(pid: int) -> int:
    """The memory that the process has resident now, a page shared by N processes counted as 1/N."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(f"process {pid} has ended")


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads of the process since it started; children are not included."""
    user_ticks, system_ticks = _stat_fields(pid)[11:13]
    return (int(user_ticks) + int(system_ticks)) / os.sysconf("SC_CLK_TCK")


def descendants(pid: int) -> list[int]:
    """The process's children, their children, and so on. Those that end meanwhile are left out."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                parent = int(_stat_fields(int(folder.name))[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            children.setdefault(parent, []).append(int(folder.name))
    found: list[int] = []
    waiting = [pid]
    while waiting:
        mine = children.get(waiting.pop(), [])
        found += mine
        waiting += mine
    return found


def _status_bytes(pid: int, field: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    # A zombie has no memory lines.
    raise ProcessLookupError(f"process {pid} has ended")


def _stat_fields(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on: the second, a name, may contain anything."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
