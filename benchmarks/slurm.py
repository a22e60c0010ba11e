"""Slurm on this one machine, for the length of a benchmark: the peer that `urun` is measured by.

Needs Slurm's and munge's programs (Debian: `slurm-wlm munge`), but no running service or
configuration of theirs, and disturbs none. Everything lies in one temporary folder: munge's key and
socket, the configuration, state, spools and logs. The daemons listen on loopback only and run in
the foreground as children of this process, which ends them, and only them.
"""

import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.report import PeerUnavailable
from benchmarks.scratch import plain_environment
from benchmarks.timing import Command

NODES = ("n1", "n2", "n3", "n4")
_PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sinfo", "squeue", "scancel")
_START_SECONDS = 30.0
_END_SECONDS = 10.0
_POLL_SECONDS = 0.05

_CONFIGURATION = """\
ClusterName=bench
SlurmctldHost={host}({address})
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CryptoType=crypto/munge
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
PlugStackConfig={folder}/plugstack.conf
MailProg={mail}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
ReturnToService=2
SlurmdParameters=config_overrides
{communication}
"""


@dataclass(frozen=True)
class Slurm:
    """A running Slurm."""

    version: str
    env: Mapping[str, str] = field(repr=False)

    def srun(self, *arguments: str) -> Command:
        return Command(" ".join(["srun", *arguments]), (_program("srun"), *arguments), self.env)


@contextmanager
def one_machine_slurm(folder: Path) -> Iterator[Slurm]:
    """A cluster of four nodes on this machine, its files in `folder`.

    Raises PeerUnavailable where it can't be had, with the reason and the mend.
    """
    missing = [name for name in _PROGRAMS if not _program(name)]
    if missing:
        raise PeerUnavailable(
            f"{', '.join(missing)} not installed (Debian: apt-get install slurm-wlm munge)"
        )
    address = _loopback_address()
    _lay_out(folder, address)
    daemons_env = {**plain_environment(), "SLURM_CONF": str(folder / "slurm.conf")}
    client_env = {**plain_environment(), "SLURM_CONF": str(folder / "client.conf")}
    with ExitStack() as stack:
        for name, argv in _daemons(folder):
            stack.enter_context(_daemon(argv, daemons_env, folder / f"{name}.log"))
            if name == "munged":
                _wait_until(lambda: (folder / "munge" / "socket").is_socket(), "munged", folder)
        _wait_until(lambda: _idle_nodes(client_env) == len(NODES), "slurmctld", folder)
        stack.callback(_end_jobs, client_env)
        yield Slurm(
            _ask(["srun", "--version"], client_env).removeprefix("slurm-wlm").strip(), client_env
        )


def _loopback_address() -> str:
    """Where the daemons listen: Slurm binds to its host's name, or else to every interface."""
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError:
        address = ""
    if not address.startswith("127."):
        raise PeerUnavailable(
            f"this host's name does not resolve to loopback, so Slurm could not stay there "
            f"(add `127.0.1.1 {name}` to /etc/hosts)"
        )
    return address


def _lay_out(folder: Path, address: str) -> None:
    """Writes the key and the configuration."""
    folder.mkdir(mode=0o700)
    (folder / "munge").mkdir(mode=0o700)
    key = os.open(folder / "munge" / "key", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(key, "wb") as file:
        file.write(os.urandom(128))
    for name in ("state", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir(mode=0o755)
    (folder / "plugstack.conf").touch()

    host = socket.gethostname().partition(".")[0]
    ports = _free_ports(1 + len(NODES))
    here = {
        "host": host,
        "address": address,
        "ports": ports,
        "folder": folder,
        "user": _user(),
        "mail": shutil.which("true"),
    }
    cpus = os.cpu_count()
    nodes = "".join(
        f"NodeName={node} NodeHostname={host} NodeAddr={address} Port={port} CPUs={cpus}\n"
        for node, port in zip(NODES, ports[1:], strict=True)
    )
    nodes += f"PartitionName=bench Nodes={','.join(NODES)} Default=YES MaxTime=INFINITE State=UP\n"
    bound = "CommunicationParameters=NoInAddrAny,NoCtldInAddrAny"
    (folder / "slurm.conf").write_text(_CONFIGURATION.format(**here, communication=bound) + nodes)
    # slurmd calls srun back at the address that its call came from, 127.0.0.1. Where the host's
    # name is another one (Debian's 127.0.1.1), an srun bound to it never hears; it binds to any.
    client = bound if address == "127.0.0.1" else ""
    (folder / "client.conf").write_text(_CONFIGURATION.format(**here, communication=client) + nodes)


def _daemons(folder: Path) -> Iterator[tuple[str, list[str]]]:
    munge = folder / "munge"
    yield (
        "munged",
        [
            _program("munged"),
            "--foreground",
            "--force",  # it would have other users reach its socket; here there are none
            f"--key-file={munge / 'key'}",
            f"--socket={munge / 'socket'}",
            f"--pid-file={munge / 'pid'}",
            f"--seed-file={munge / 'seed'}",
            f"--log-file={munge / 'log'}",
        ],
    )
    configuration = str(folder / "slurm.conf")
    yield "slurmctld", [_program("slurmctld"), "-D", "-f", configuration]
    for node in NODES:
        yield f"slurmd-{node}", [_program("slurmd"), "-D", "-f", configuration, "-N", node]


@contextmanager
def _daemon(argv: list[str], env: Mapping[str, str], log: Path) -> Iterator[None]:
    """The daemon, in a session of its own (a Ctrl-C is for us: we end it), ended with this block.

    Where util-linux has `setpriv`, the kernel ends it too should this process be killed.
    """
    setpriv = shutil.which("setpriv")
    prefix = [setpriv, "--pdeathsig", "TERM", "--"] if setpriv else []
    with log.open("wb") as output:
        daemon = subprocess.Popen(
            [*prefix, *argv],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield
    finally:
        daemon.terminate()
        try:
            daemon.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()


def _end_jobs(env: Mapping[str, str]) -> None:
    """Ends what still runs, and waits until no job's supervisor is left: these outlive slurmd."""
    _ask(["scancel", "--user", _user()], env)
    deadline = time.monotonic() + _END_SECONDS
    while _ask(["squeue", "--noheader"], env) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)


def _wait_until(ready: Callable[[], bool], daemon: str, folder: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not ready():
        if time.monotonic() > deadline:
            log = (folder / f"{daemon}.log").read_text(errors="replace").strip().splitlines()
            last = log[-1] if log else "its log is empty"
            raise PeerUnavailable(
                f"Slurm did not come up in {_START_SECONDS:.0f} s; {daemon}: {last}"
            )
        time.sleep(_POLL_SECONDS)


def _idle_nodes(env: Mapping[str, str]) -> int:
    return _ask(["sinfo", "--noheader", "--Node", "--format=%t"], env).split().count("idle")


def _ask(argv: list[str], env: Mapping[str, str]) -> str:
    """What one of Slurm's commands prints; nothing where it fails, as before the start."""
    try:
        done = subprocess.run(
            [_program(argv[0]), *argv[1:]],
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_START_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _program(name: str) -> str:
    """The full path of a program, in the administrator's folders too; empty if there is none."""
    path = os.pathsep.join(
        [os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"]
    )
    return shutil.which(name, path=path) or ""


def _user() -> str:
    return pwd.getpwuid(os.geteuid()).pw_name


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now. Held together while they are picked, so that all differ."""
    with ExitStack() as stack:
        ports = []
        for _ in range(count):
            held = stack.enter_context(socket.socket())
            held.bind(("127.0.0.1", 0))
            ports.append(held.getsockname()[1])
        return ports
