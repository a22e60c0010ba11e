"""Hosts: each is a machine of its own, and nothing of them is left."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.network import FAR, Host, Network, NetworkError, guardian, unavailable
from tests.network.sockets import PORT, connected, round_trip, udp
from tests.waiting import until, wait_gone

ROOT = Path(__file__).parents[2]
SERVER = """
import socket
with socket.create_server(("", 7000)) as listening:
    print("listening", flush=True)
    accepted, (address, _) = listening.accept()
    with accepted:
        accepted.sendall(f"hello {address}".encode())
"""
CLIENT = """
import socket, sys
with socket.create_connection((sys.argv[1], 7000), timeout=float(sys.argv[2])) as dialled:
    print(dialled.recv(100).decode())
"""


@contextlib.contextmanager
def serving(host: Host) -> Iterator[None]:
    """A program on a host that says to one caller which address it has, then ends."""
    argv = [sys.executable, "-c", SERVER]
    with host.popen(argv, stdout=subprocess.PIPE, text=True) as program:
        try:
            assert program.stdout
            assert program.stdout.readline() == "listening\n"
            yield
        finally:
            program.kill()


def call(host: Host, name: str, seconds: float = 10) -> str:
    done = host.run([sys.executable, "-c", CLIENT, name, str(seconds)], check=False)
    return str(done.stdout or done.stderr).splitlines()[-1]


@pytest.mark.parametrize("emulated", [True, False], ids=["emulated", "plain"])
def test_programs_on_hosts_reach_each_other_by_name(network: Network, emulated: bool) -> None:
    server = network.host("server", emulated=emulated)
    runner = network.host("runner1", emulated=emulated)
    with serving(server):
        assert call(runner, "server") == f"hello {runner.address}"
    with serving(runner):
        assert call(server, "runner1") == f"hello {server.address}"
    assert server.address != runner.address


def test_a_name_that_no_host_has_does_not_resolve(network: Network) -> None:
    assert "gaierror" in call(network.host("client"), "nowhere")


def test_names_of_hosts_that_came_later_resolve_everywhere(network: Network) -> None:
    first, second = network.host("first"), network.host("second")
    for host in (first, second):
        told = host.run(["getent", "hosts", "first", "second", "localhost"]).stdout.split()
        assert told[::2][:2] == [first.address, second.address]


def test_a_program_is_on_its_host_with_its_user_and_directory(
    network: Network, tmp_path: Path
) -> None:
    host = network.host("runner1")
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_mode & 0o001 == 0:  # never the machine's own /tmp
            folder.chmod(0o755)
    script = "hostname; pwd; id -u; id -g; id -G; echo $$; printf '%s\n' \"$@\""
    argv = ["sh", "-c", script, "sh", "a  b", "", "c=d\n"]
    with host.popen(argv, cwd=tmp_path, uid=4321, stdout=subprocess.PIPE, text=True) as program:
        told = program.communicate()[0]

    assert told == f"runner1\n{tmp_path}\n4321\n4321\n4321\n{program.pid}\na  b\n\nc=d\n\n"
    assert host.run(["id", "-u"]).stdout == "0\n"
    assert host.run(["pwd"]).stdout == f"{Path.cwd()}\n"
    assert socket.gethostname() != "runner1"


def test_a_program_sees_no_device_but_its_host_s(network: Network) -> None:
    host = network.host("runner1")
    listed = json.loads(host.run(["ip", "-j", "addr"]).stdout)

    assert sorted(each["ifname"] for each in listed) == ["eth0", "lo"]
    assert host.address in json.dumps(listed)


def test_unix_sockets_in_the_abstract_namespace_are_the_host_s_own(network: Network) -> None:
    host = network.host("runner1")
    name = f"\0{network.name}"
    script = f"import socket; socket.socket(socket.AF_UNIX).bind({name!r})"
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(name)
        host.run([sys.executable, "-c", script])


def test_a_host_behind_nat_dials_out_and_its_gateway_is_what_is_seen(network: Network) -> None:
    server, hidden = network.host("server"), network.host("runner3", nat=True)
    with serving(server):
        seen = call(hidden, "server").removeprefix("hello ")

    assert seen != hidden.address
    assert seen in server.run(["getent", "hosts", "runner3-gateway"]).stdout


def test_nobody_dials_in_to_a_host_behind_nat(network: Network) -> None:
    server, hidden = network.host("server"), network.host("runner3", nat=True)
    with serving(hidden):
        assert "Error" in call(server, "runner3")
        assert "Error" in call(server, "runner3-gateway")
        # Even where the way to its private address is known, its gateway lets nobody pass.
        gateway = server.run(["getent", "hosts", "runner3-gateway"]).stdout.split()[0]
        network.router.ip(f"route add {hidden.address}/32 via {gateway}")
        assert "TimeoutError" in call(server, "runner3", 1.5)
        assert call(hidden, "localhost").startswith("hello")


def test_what_answers_a_host_behind_nat_reaches_it(network: Network) -> None:
    server, hidden = network.host("server"), network.host("runner3", FAR, nat=True)
    hidden.link.set(loss=0)
    dialled, accepted = connected(hidden, server)
    with dialled, accepted:
        accepted.sendall(b"from the server")
        assert dialled.recv(100) == b"from the server"
    with udp(hidden) as inside, udp(server) as outside:
        inside.sendto(b"here I am", (server.address, PORT))
        _, gateway = outside.recvfrom(100)
        outside.sendto(b"so there you are", gateway)
        assert inside.recv(100) == b"so there you are"


def test_networks_of_many_processes_and_threads_do_not_meet() -> None:
    def alone(number: int) -> str:
        with Network(number) as network:
            server, client = network.host("server"), network.host("client", emulated=True)
            with udp(server) as here, udp(client) as there:
                there.sendto(str(number).encode(), here.getsockname())
                return here.recv(100).decode()

    with ThreadPoolExecutor() as threads:
        assert list(threads.map(alone, range(4))) == ["0", "1", "2", "3"]


def test_words_of_the_tools_that_make_a_host_may_be_its_name(network: Network) -> None:
    hosts = [network.host(name, emulated=name < "d") for name in ("a", "both", "dev", "up", "lo0")]
    for host in hosts:
        with udp(host) as here, udp(hosts[0] if host is hosts[1] else hosts[1]) as there:
            assert round_trip(here, there) > 0
            assert host.link.counters()["up"].packets > 0


@pytest.mark.parametrize("name", ["", "Server", "a" * 16, "a b", "localhost", "lo", "taken", "1st"])
def test_a_name_that_cannot_be_a_host_s_is_refused(network: Network, name: str) -> None:
    network.host("taken")
    with pytest.raises(NetworkError, match="no name for a host"):
        network.host(name)


def test_what_a_machine_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert unavailable() is None
    monkeypatch.setenv("PATH", "/nowhere")
    assert unavailable() == "needs ip (Debian package iproute2)"


def test_nothing_is_left_of_a_network_whatever_runs_on_it() -> None:
    argv = ["sh", "-c", "trap '' TERM HUP; setsid sleep 1000 & echo $!; wait"]
    with contextlib.ExitStack() as running:
        with Network() as network:
            hosts = [network.host("server"), network.host("runner", FAR, nat=True)]
            programs = []
            for host in hosts:
                program = host.popen(argv, stdout=subprocess.PIPE, text=True)
                running.enter_context(program)
                assert program.stdout
                programs.append((program, int(program.stdout.readline())))
            programs[0][0].send_signal(signal.SIGSTOP)
            namespaces = [Path(host.namespaces["net"]).readlink() for host in hosts]
            assert _held(namespaces)

        for program, child in programs:
            wait_gone(child)
            assert program.wait() == -signal.SIGKILL
        assert not network.folder.exists()
        assert not _held(namespaces)


def test_nothing_is_left_when_the_owner_is_killed() -> None:
    with _owner() as (owner, name, programs):
        owner.kill()
        owner.wait()

        until(lambda: not (guardian.FOLDERS / name).exists())
        for pid in programs:
            wait_gone(pid)
        assert not list(guardian.processes_in(name))


def test_the_next_network_removes_what_neither_owner_nor_guardian_could() -> None:
    with _owner() as (owner, name, programs):
        folder = guardian.FOLDERS / name
        watchman, _ = until(lambda: (folder / "guardian").read_text().split())
        os.kill(int(watchman), signal.SIGKILL)
        owner.kill()
        owner.wait()
        wait_gone(int(watchman))
        assert folder.exists()
        assert set(guardian.processes_in(name)) >= set(programs)

        with Network():
            assert not folder.exists()
            assert not list(guardian.processes_in(name))
            for pid in programs:
                wait_gone(pid)


def test_a_sweep_leaves_the_networks_of_the_living_alone() -> None:
    with Network() as mine, _owner() as (owner, name, programs):
        with Network():
            assert mine.folder.exists()
            assert set(guardian.processes_in(name)) >= set(programs)
            assert owner.poll() is None
        owner.kill()
        owner.wait()
        until(lambda: not (guardian.FOLDERS / name).exists())


@contextlib.contextmanager
def _owner() -> Iterator[tuple["subprocess.Popen[str]", str, list[int]]]:
    """Another process with a network: itself, the network's name, the programs on it."""
    argv = [sys.executable, "-m", "tests.network.owner"]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True) as owner:
        try:
            assert owner.stdout
            told = json.loads(owner.stdout.readline())
            yield owner, told["name"], told["programs"]
        finally:
            owner.kill()


def _held(namespaces: list[Path]) -> list[str]:
    """The processes in, or holding open, one of these namespaces."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            for link in (process / "ns/net", *(process / "fd").iterdir()):
                with contextlib.suppress(OSError):
                    if link.readlink() in namespaces:
                        found.append(str(link))
    return found
