"""A machine on the network: how to run programs on it."""

from __future__ import annotations

import ctypes
import os
import pwd
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.network.clock import Clock
from tests.network.link import Link
from tests.network.servant import NetworkError

_libc = ctypes.CDLL(None, use_errno=True)

Argument = str | bytes | os.PathLike[str]


class Machine:
    """Namespaces with an address and a name: a host, the router, or a gateway."""

    def __init__(self, name: str, namespaces: Mapping[str, str]) -> None:
        self.name = name
        self.namespaces = namespaces
        """`net`, `uts` and `mnt`: the file that stands for each, while the network is there."""
        self.clock: Clock | None = None

    def command(
        self,
        argv: Sequence[Argument],
        *,
        cwd: str | os.PathLike[str] | None = None,
        uid: int | None = None,
    ) -> list[str]:
        """The argv which runs a program here, in this process's directory and as root unless told.

        No process stays between: it becomes the program, so its pid, its signals and its terminal
        are the program's. The directory is part of the argv, since who enters mounts is in `/`.
        """
        entered = [f"--{_OPTIONS[kind]}={file}" for kind, file in self.namespaces.items()]
        if uid is not None:
            entered += [f"--setgid={_group_of(uid)}", f"--setuid={uid}"]
        environment = [f"{name}={value}" for name, value in self._environment().items()]
        become = ["env", "-C", os.fspath(cwd or Path.cwd()), *environment]
        return ["nsenter", *entered, "--", *become, *map(os.fsdecode, argv)]

    def popen(
        self,
        argv: Sequence[Argument],
        *,
        cwd: str | os.PathLike[str] | None = None,
        uid: int | None = None,
        **options: Any,
    ) -> subprocess.Popen[Any]:
        """Start a program here; further options are those of `subprocess.Popen`."""
        return subprocess.Popen(self.command(argv, cwd=cwd, uid=uid), **options)

    def run(
        self,
        argv: Sequence[Argument],
        *,
        cwd: str | os.PathLike[str] | None = None,
        uid: int | None = None,
        **options: Any,
    ) -> subprocess.CompletedProcess[Any]:
        """Run a program here to its end, for at most a minute; its output is text, captured.

        It must succeed. Options are those of `subprocess.run`, which replace these.
        """
        usual = {"check": True, "text": True, "capture_output": True, "timeout": 60}
        return subprocess.run(self.command(argv, cwd=cwd, uid=uid), **(usual | options))

    def socket(self, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """An IPv4 socket of this process that is here: it listens, and calls, on this machine.

        Names are those of the process, so give addresses.
        """
        with Path("/proc/thread-self/ns/net").open("rb") as home:
            with Path(self.namespaces["net"]).open("rb") as here:
                _enter_network(here.fileno())
            try:
                return socket.socket(socket.AF_INET, kind)
            finally:
                _enter_network(home.fileno())

    def configure(self, program: Sequence[str], script: str = "") -> str:
        """Run `ip` or `nft` over a script; an error names what it said."""
        done = self.run(program, cwd="/", input=script, check=False)
        if done.returncode:
            raise NetworkError(f"{' '.join(program)} on {self.name}: {done.stderr}\n{script}")
        return str(done.stdout)

    def ip(self, *lines: str) -> None:
        self.configure(["ip", "-batch", "-"], "\n".join(lines))

    def _environment(self) -> dict[str, str]:
        return self.clock.environment() if self.clock else {}


class Host(Machine):
    """A machine with an address of its own and one link, to the router."""

    def __init__(self, name: str, namespaces: Mapping[str, str], address: str, link: Link) -> None:
        super().__init__(name, namespaces)
        self.address = address
        self.link = link

    def clock_offset(self, seconds: float) -> None:
        """Let the wall clock of all programs here jump: to this far from the system's."""
        if self.clock is None:
            raise NetworkError(f"{self.name} has the system's clock; make it with clock=True")
        self.clock.set(seconds)


_OPTIONS = {"net": "net", "uts": "uts", "mnt": "mount"}


def _enter_network(fd: int) -> None:
    """Of this thread only. `os.setns` came with Python 3.12."""
    if _libc.setns(fd, 0x40000000) != 0:
        raise OSError(ctypes.get_errno(), "setns: cannot enter a network namespace")


def _group_of(uid: int) -> int:
    try:
        return pwd.getpwuid(uid).pw_gid
    except KeyError:
        return uid
