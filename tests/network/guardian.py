"""Hold the namespaces of one network, and take all of it away when its owner ends, however it ends.

Run as `python -I -S guardian.py NETWORK OWNER` with a packet socket as standard input; each request
is a JSON object, each answer one too. A namespace lives as long as a process is in it or holds it
open: nothing but this process does, so the kernel itself removes what is left of a network whose
guardian is gone. Only programs that a test left running in one could outlive it; they are found by
the mount of `/etc/hosts` that each of them sees, and killed.

Standard library, and no import of the suite: it has to start in a few milliseconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import select
import shutil
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

FOLDERS = Path("/run")
PREFIX = "updraft-network-"

_CLONE_NEWNS = 0x00020000
_CLONE_NEWUTS = 0x04000000
_CLONE_NEWNET = 0x40000000
_MS_BIND = 0x1000
_MS_REC = 0x4000
_MS_PRIVATE = 1 << 18
_TUNSETIFF = 0x400454CA
_IFF_TUN = 0x0001
_IFF_NO_PI = 0x1000

_libc = ctypes.CDLL(None, use_errno=True)


def _call(function: str, *arguments: object) -> None:
    if getattr(_libc, function)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{function}: {os.strerror(number)}")


def started(pid: int) -> str | None:
    """When a process was started, in the kernel's ticks; None when there is none, or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def processes_in(network: str) -> Iterator[int]:
    """The processes inside the network's hosts."""
    mark = f"/{network}/".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended
                if mark in (entry / "mountinfo").read_bytes():
                    yield int(entry.name)


def remove(network: str, seconds: float = 10) -> None:
    """Kill what runs in a network's hosts and delete its folder; the kernel does the rest."""
    deadline = time.monotonic() + seconds
    # Each pass may find what the last one's victims were still starting.
    while victims := list(processes_in(network)):
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes {victims} of {network} live on")
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)
    shutil.rmtree(FOLDERS / network, ignore_errors=True)


def sweep() -> None:
    """Remove the networks whose owner is gone, with a guardian that could not do its work."""
    for folder in FOLDERS.glob(f"{PREFIX}*"):
        pid, start, guardian, guardian_start = _owners(folder)
        if started(pid) != start and started(guardian) != guardian_start:
            remove(folder.name)


def _owners(folder: Path) -> tuple[int, str, int, str]:
    pid, start = folder.name.removeprefix(PREFIX).split("-")[:2]
    try:
        guardian, guardian_start = (folder / "guardian").read_text().split()
    except (OSError, ValueError):
        return int(pid), start, 0, "never"
    return int(pid), start, int(guardian), guardian_start


class Namespaces:
    """Makes namespaces and devices in them; it is itself in none of them when it has answered."""

    def __init__(self, network: str) -> None:
        self._folder = FOLDERS / network
        self._home = [
            os.open(f"/proc/self/ns/{kind}", os.O_RDONLY) for kind in ("net", "uts", "mnt")
        ]

    def make(self, name: str, forwards: bool) -> dict[str, int]:
        """A machine's network, host name and mounts; the answer has this process's descriptors."""
        try:
            _call("unshare", _CLONE_NEWNET | _CLONE_NEWUTS | _CLONE_NEWNS)
            socket.sethostname(name)
            self._mount()
            # Else each device asks for routers and groups, and the counters count that too.
            _write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1")
            _write("/proc/sys/net/ipv4/ip_forward", str(int(forwards)))
            kinds = ("net", "uts", "mnt")
            return {kind: os.open(f"/proc/self/ns/{kind}", os.O_RDONLY) for kind in kinds}
        finally:
            self._return()

    def tun(self, net: int, device: str) -> int:
        """A device in a namespace whose packets are read from, and written to, the descriptor."""
        try:
            _call("setns", net, _CLONE_NEWNET)
            fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            request = struct.pack("16sH22x", device.encode(), _IFF_TUN | _IFF_NO_PI)
            fcntl.ioctl(fd, _TUNSETIFF, request)
            return fd
        finally:
            self._return()

    def _mount(self) -> None:
        _call("mount", b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)
        for file in ("hosts", "resolv.conf"):
            target = f"/etc/{file}"
            if Path(target).exists():
                source = os.fsencode(self._folder / file)
                _call("mount", source, target.encode(), None, _MS_BIND, None)

    def _return(self) -> None:
        for fd, kind in zip(self._home, (_CLONE_NEWNET, _CLONE_NEWUTS, _CLONE_NEWNS), strict=True):
            _call("setns", fd, kind)


def _write(file: str, value: str) -> None:
    with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
        Path(file).write_text(value)


def serve(network: str, owner: int, control: socket.socket) -> None:
    """Answer requests until the owner has hung up or died."""
    namespaces = Namespaces(network)

    def make(request: dict[str, object]) -> tuple[object, list[int]]:
        return namespaces.make(str(request["name"]), bool(request["forwards"])), []

    def tun(request: dict[str, object]) -> tuple[object, list[int]]:
        return None, [namespaces.tun(int(str(request["net"])), str(request["device"]))]

    actions: dict[str, Callable[[dict[str, object]], tuple[object, list[int]]]]
    actions = {"make": make, "tun": tun}
    death = os.pidfd_open(owner)
    while True:
        ready, _, _ = select.select([control.fileno(), death], [], [])
        if death in ready:
            return
        if not (message := control.recv(65536)):
            return
        fds: list[int] = []
        try:
            request = json.loads(message)
            value, fds = actions[request["action"]](request)
            answer = {"value": value}
        except OSError as error:
            answer = {"error": str(error)}
        socket.send_fds(control, [json.dumps(answer).encode()], fds)
        for fd in fds:
            os.close(fd)


def main(network: str, owner: int) -> None:
    (FOLDERS / network / "guardian").write_text(f"{os.getpid()} {started(os.getpid())}")
    try:
        with socket.socket(fileno=0) as control:
            serve(network, owner, control)
    except OSError:  # the owner died in the middle of an answer
        pass
    finally:
        remove(network)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
