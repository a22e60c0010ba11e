"""Machines on a network, on this machine: for tests of what runs on several.

Each host has a network, a host name and an `/etc/hosts` of its own (Linux namespaces), and a link
to a router. Root only; `unavailable()` tells what a machine lacks.

```python
with Network(seed=seed) as network:
    server = network.host("server")
    runner = network.host("runner1", FAR)  # 200 ms there and back, 1 % loss, 1 MB/s
    hidden = network.host("runner2", nat=True)  # may dial out; nobody can dial in
    moody = network.host("runner3", emulated=True, clock=True)

    listening = server.popen(["updraft", "serve"])
    runner.run(["curl", "http://server:8080/"], uid=1000)  # names resolve; as that user
    argv = hidden.command(["urun", "true"], cwd=folder)  # for one's own Popen, with a pty say

    moody.link.set(delay_ms=50, loss=0.1)  # each way
    moody.link.apply(FAR, "down")
    moody.link.cut("up")  # what it sends is lost; what is sent to it arrives
    moody.link.heal()
    moody.link.counters()["up"].blocked
    moody.clock_offset(-3600)  # its wall clock jumps, in programs that run as well
```

When the block ends, or the process that made it is killed, every program on the hosts is killed and
nothing of the network is left. Processes are the machine's (no PID namespace), so are files, except
`/etc/hosts` and `/etc/resolv.conf`; `/sys` shows the machine's own devices.

- network.py    hosts, addresses, router, gateways
- host.py       running programs
- link.py       conditions, cuts, counters
- shuttle.py    the process behind an emulated link
- guardian.py   the process that holds the namespaces, and cleans up
- clock.c, .py  wall clocks that jump
"""

from tests.network.host import Host, Machine
from tests.network.link import FAR, LAN, Conditions, Counters, Link
from tests.network.network import Network, unavailable
from tests.network.servant import NetworkError

__all__ = [
    "FAR",
    "LAN",
    "Conditions",
    "Counters",
    "Host",
    "Link",
    "Machine",
    "Network",
    "NetworkError",
    "unavailable",
]
