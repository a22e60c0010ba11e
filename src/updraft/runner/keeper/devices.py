"""Which devices a slot's task may open, whoever it is: the second wall, behind ``isolation``'s.

Imported only by a keeper that isolates.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

from updraft.runner.keeper import hierarchies
from updraft.runner.keeper.controllers import write
from updraft.runner.keeper.processes import libc

Devices = list[tuple[str, int, int | None]]
"""``(type, major, minor or None for all)`` of each device that may be opened."""


class DevicesV1:
    """Which devices a task may open, whoever it is."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._allowed: Devices | None = None

    def allow(self, allowed: Devices | None) -> None:
        """Allow these, to be read and written; None: all.  Raises ``OSError``."""
        if allowed == self._allowed:
            return
        if allowed is None:
            write(self._folder, "devices.allow", "a")
        else:
            write(self._folder, "devices.deny", "a")
            for kind, major, minor in allowed:
                number = "*" if minor is None else minor
                write(self._folder, "devices.allow", f"{kind} {major}:{number} rw")
        self._allowed = allowed

    def close(self) -> None:
        """Nothing is kept open."""


class DevicesV2:
    """The same by a program that the kernel asks: v2 has no files for it.

    Source: the kernel's uapi/linux/bpf.h, ``BPF_PROG_TYPE_CGROUP_DEVICE``.
    """

    def __init__(self, folder: str) -> None:
        self._group = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._allowed: Devices | None = None
        self._program = -1

    def allow(self, allowed: Devices | None) -> None:
        """Allow these, to be read and written; None: all.  Raises ``OSError``."""
        if allowed == self._allowed:
            return
        program = -1 if allowed is None else _load(device_program(allowed))
        try:
            if program >= 0:
                _bpf(_BPF_PROG_ATTACH, _place(self._group, program, _BPF_ALLOW_MULTI))
        except OSError:
            os.close(program)
            raise
        if self._program >= 0:
            _bpf(_BPF_PROG_DETACH, _place(self._group, self._program, 0))
            os.close(self._program)
        self._program, self._allowed = program, allowed

    def close(self) -> None:
        """Let go of the group; the program stays with it until it is removed."""
        os.close(self._group)
        if self._program >= 0:
            os.close(self._program)
            self._program = -1


def limited_by() -> str:
    """Return what limits devices on this machine beside what a task sees, empty for nothing."""
    if hierarchies.find_devices_tree() is not None:
        return "the devices control group (v1)"
    if not any(tree.version == 2 for tree in hierarchies.find_trees()[0]):
        return ""
    try:
        os.close(_load(device_program([])))
    except OSError:
        return ""
    return "a program of the control group's (v2)"


_BPF_PROG_LOAD, _BPF_PROG_ATTACH, _BPF_PROG_DETACH = 5, 8, 9
_SYS_BPF = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}
_BPF_ALLOW_MULTI = 2  # others' programs, systemd's, are asked too


def device_program(allowed: Devices) -> bytes:
    """Return the program that answers whether a device may be opened."""
    # The context: u32 access << 16 | type, u32 major, u32 minor.
    program = [
        _instruction(0x61, 2, 1, 0, 0),  # r2 = type, r3 = access, r4 = major, r5 = minor
        _instruction(0xBF, 3, 2, 0, 0),
        _instruction(0x54, 2, 0, 0, 0xFFFF),
        _instruction(0x74, 3, 0, 0, 16),
        _instruction(0x61, 4, 1, 4, 0),
        _instruction(0x61, 5, 1, 8, 0),
        _instruction(0x54, 3, 0, 0, 1),  # making a node is never allowed
        _instruction(0x15, 3, 0, 2, 0),
        _instruction(0xB7, 0, 0, 0, 0),
        _instruction(0x95, 0, 0, 0, 0),
    ]
    for kind, major, minor in allowed:
        rest = 2 if minor is None else 3
        program.append(_instruction(0x55, 2, 0, rest + 1, 2 if kind == "c" else 1))
        program.append(_instruction(0x55, 4, 0, rest, major))
        if minor is not None:
            program.append(_instruction(0x55, 5, 0, 2, minor))
        program.append(_instruction(0xB7, 0, 0, 0, 1))
        program.append(_instruction(0x95, 0, 0, 0, 0))
    program.append(_instruction(0xB7, 0, 0, 0, 0))
    program.append(_instruction(0x95, 0, 0, 0, 0))
    return b"".join(program)


def _instruction(code: int, target: int, source: int, offset: int, value: int) -> bytes:
    registers = target | source << 4 if sys.byteorder == "little" else target << 4 | source
    return struct.pack("=BBhi", code, registers, offset, value)


def _load(program: bytes) -> int:
    code, license_text = (ctypes.create_string_buffer(text) for text in (program, b"GPL"))
    where = ctypes.addressof(code), ctypes.addressof(license_text)
    return _bpf(_BPF_PROG_LOAD, struct.pack("=IIQQ104x", 15, len(program) // 8, *where))


def _place(group: int, program: int, flags: int) -> bytes:
    return struct.pack("=IIII112x", group, program, 6, flags)


def _bpf(command: int, attributes: bytes) -> int:
    """Call the kernel's bpf(2).  Raises ``OSError``."""
    number = _SYS_BPF.get(os.uname().machine)
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    held = ctypes.create_string_buffer(attributes, len(attributes))
    result = int(libc().syscall(number, command, held, len(attributes)))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
