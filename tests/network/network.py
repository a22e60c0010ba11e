"""Make a network, and take it away."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import cast

from tests.network import guardian
from tests.network.clock import Clock, compiler
from tests.network.host import Host, Machine
from tests.network.link import LAN, Conditions, EmulatedLink, Link, PlainLink
from tests.network.servant import NetworkError, Servant

_TRIAL = """
ip link add name veth0 type veth peer name veth1
ip tuntap add dev tun0 mode tun
nft 'add table ip t; add chain ip t o { type nat hook postrouting priority 100; }'
nft 'add rule ip t o masquerade; add rule ip t o ct state established accept'
"""
_serial = itertools.count(1)


def unavailable(*, clock: bool = False) -> str | None:
    """Why this machine cannot have such a network, as a line for a skipped test; None if it can."""
    if os.geteuid() != 0:
        return "needs root"
    for command, package in (("ip", "iproute2"), ("nft", "nftables"), ("nsenter", "util-linux")):
        if shutil.which(command) is None:
            return f"needs {command} (Debian package {package})"
    if not Path("/dev/net/tun").exists():
        return "needs /dev/net/tun"
    if clock and compiler() is None:
        return "needs a C compiler, for a host's own clock"
    # Tried, not asked: what is in the way may be the kernel, a capability or a container's profile.
    tried = ["unshare", "--net", "--uts", "--mount", "sh", "-ec", _TRIAL]
    done = subprocess.run(tried, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        return f"cannot make a network: {done.stderr.strip().splitlines()[0]}"
    return None


class Network:
    """Hosts around a router, until the `with` block ends; see the package for an example.

    Several may be there at once, of one process and of many: nothing of one is seen by another or
    by the machine, except its folder in `/run`, named for the process that made it.

    The seed decides which packets are lost. Packets are as large as on Ethernet; with an `mtu` of
    65,535 an emulated LAN is ten times as fast, but a loss is of more at once.
    """

    def __init__(self, seed: int = 0, mtu: int = 1500) -> None:
        self.seed = seed
        self.mtu = mtu
        self.hosts: dict[str, Host] = {}
        pid = os.getpid()
        self.name = f"{guardian.PREFIX}{pid}-{guardian.started(pid)}-{next(_serial)}"
        self.folder = guardian.FOLDERS / self.name
        self.router: Machine
        self._guardian: Servant
        self._names = {"lo", "router"}
        self._ending = ExitStack()

    def __enter__(self) -> Network:
        guardian.sweep()
        with ExitStack() as failed:
            self.folder.mkdir(mode=0o755)
            self.folder.chmod(0o755)  # whatever the umask: users read the names and the clock here
            failed.callback(guardian.remove, self.name)
            for file in ("hosts", "resolv.conf"):
                (self.folder / file).touch()
                (self.folder / file).chmod(0o644)
            self._resolve("localhost", "127.0.0.1")
            self._guardian = Servant("guardian.py", [self.name, str(os.getpid())])
            failed.callback(self._guardian.close)
            self.router = Machine("router", self._namespaces("router", forwards=True))
            self.router.ip("link set dev lo up")
            self._ending = failed.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.close()

    def host(
        self,
        name: str,
        conditions: Conditions = LAN,
        *,
        emulated: bool | None = None,
        nat: bool = False,
        clock: bool = False,
    ) -> Host:
        """Add a host, joined to the router by a link under these conditions.

        `emulated` makes a link whose conditions may change later, though it begins as a LAN; it is
        slower than the kernel's own, which others than LANs cannot be. With `nat` the host has a
        private address behind a gateway that lets nobody in. `clock` gives it a wall clock of its
        own.
        """
        if not re.fullmatch("[a-z][a-z0-9-]{0,14}", name) or name in self._names:
            raise NetworkError(
                f"{name!r} is no name for a host: new, and at most 15 of a-z, 0-9, -"
            )
        if emulated is None:
            emulated = conditions != LAN
        if conditions != LAN and not emulated:
            raise NetworkError(f"{name}: only an emulated link can be other than a LAN")
        number = len(self.hosts) + 1
        outside, address = f"10.0.{number}.2", f"10.0.{number}.2"
        machine = Machine(name, self._namespaces(name, forwards=False))
        machine.ip("link set dev lo up")
        if nat:
            gateway = Machine(f"{name}-gateway", self._namespaces(f"{name}-gateway", forwards=True))
            address = f"192.168.{number}.2"
            self._put_behind(gateway, machine, number)
            self._resolve(gateway.name, outside)
        else:
            gateway = machine
        link = self._join(gateway, number, name, conditions if emulated else None)
        self._resolve(name, address)
        host = self.hosts[name] = Host(name, machine.namespaces, address, link)
        if clock:
            host.clock = Clock(self.folder, name)
        return host

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def __iter__(self) -> Iterator[Host]:
        return iter(self.hosts.values())

    def _resolve(self, name: str, address: str) -> None:
        self._names.add(name)
        # In place, since hosts have this very file mounted; appended, since they may be reading it.
        with (self.folder / "hosts").open("a") as file:
            file.write(f"{address} {name}\n")

    def _namespaces(self, name: str, *, forwards: bool) -> dict[str, str]:
        value, _ = self._guardian.ask({"action": "make", "name": name, "forwards": forwards})
        fds = cast("dict[str, int]", value)
        return {kind: f"/proc/{self._guardian.pid}/fd/{fd}" for kind, fd in fds.items()}

    def _join(
        self, machine: Machine, number: int, name: str, conditions: Conditions | None
    ) -> Link:
        """Connect a machine's `eth0` with the device in the router that has the host's name."""
        link: Link
        router = self.router.namespaces["net"]
        if conditions is None:
            machine.ip(f"link add name eth0 type veth peer name {name} netns {router}")
            link = PlainLink(self.router, number, name)
        else:
            shuttle = self._shuttle(machine, name)
            self._ending.callback(shuttle.close)
            link = EmulatedLink(shuttle, conditions)
        machine.ip(
            f"addr add 10.0.{number}.2/24 dev eth0",
            f"link set dev eth0 mtu {self.mtu} txqueuelen 1000 up",
            f"route add default via 10.0.{number}.1 dev eth0",
        )
        self.router.ip(
            f"addr add 10.0.{number}.1/24 dev {name}",
            f"link set dev {name} mtu {self.mtu} txqueuelen 1000 up",
        )
        return link

    def _shuttle(self, machine: Machine, name: str) -> Servant:
        fds: list[int] = []
        try:
            for end, device in ((machine, "eth0"), (self.router, name)):
                net = end.namespaces["net"].rpartition("/")[2]
                fds += self._guardian.ask({"action": "tun", "net": int(net), "device": device})[1]
            arguments = [str(os.getpid()), *map(str, fds), f"{self.seed} {name}"]
            return Servant("shuttle.py", arguments, fds)
        finally:
            for fd in fds:
                os.close(fd)

    def _put_behind(self, gateway: Machine, machine: Machine, number: int) -> None:
        inside = gateway.namespaces["net"]
        machine.ip(
            f"link add name eth0 mtu {self.mtu} type veth peer name inside netns {inside}",
            f"addr add 192.168.{number}.2/24 dev eth0",
            "link set dev eth0 up",
        )
        gateway.ip(
            "link set dev lo up",
            f"addr add 192.168.{number}.1/24 dev inside",
            f"link set dev inside mtu {self.mtu} up",
        )
        machine.ip(f"route add default via 192.168.{number}.1 dev eth0")
        gateway.configure(
            ["nft", "-f", "-"],
            """
            table ip nat {
                chain out { type nat hook postrouting priority srcnat; oifname "eth0" masquerade; }
            }
            table ip filter {
                chain forward {
                    type filter hook forward priority filter; policy drop;
                    iifname "inside" accept
                    ct state established,related accept
                }
            }
            """,
        )
