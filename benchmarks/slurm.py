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

_PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sinfo", "squeue", "scancel", "sbatch")
_START_SECONDS = 30.0
_END_SECONDS = 10.0
_POLL_SECONDS = 0.05
_ARRAY_POLL_SECONDS = 0.25
"""Each look is a call that the controller answers: seldom enough to cost it little."""

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
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
ReturnToService=2
SlurmdParameters=config_overrides
{settings}
{communication}
"""


@dataclass(frozen=True)
class Cluster:
    """What a Slurm is made of. `cpus`: of each node; None: as many as the machine has."""

    nodes: tuple[str, ...]
    cpus: int | None
    settings: str
    """Lines of slurm.conf."""


LAUNCHES = Cluster(
    ("n1", "n2", "n3", "n4"),
    None,
    "SchedulerType=sched/backfill\nProctrackType=proctrack/linuxproc",
)
"""As packaged: what `srun` is measured with."""

HIGH_THROUGHPUT = Cluster(
    ("n1",),
    4,
    """\
SchedulerType=sched/builtin
PriorityType=priority/basic
ProctrackType=proctrack/pgid
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=1
Epilog={true}
MaxJobCount=200000
MaxArraySize=100001
MinJobAge=2
MessageTimeout=60
SlurmctldDebug=error
SlurmdDebug=error""",
)
"""Slurm's guide to high throughput, for four CPUs.

The guide's `defer` and its pauses between passes of the scheduler are left out: they are for
clusters that have hundreds of jobs to start in a pass, and would start four a second, or fewer. For
the same reason there is an epilog: without one, the end of a job waits for the next second's pass.
"""


@dataclass(frozen=True)
class Slurm:
    """A running Slurm."""

    version: str
    env: Mapping[str, str] = field(repr=False)

    def srun(self, *arguments: str) -> Command:
        return Command(" ".join(["srun", *arguments]), (_program("srun"), *arguments), self.env)

    def run_array(self, script: Path, count: int) -> float:
        """Run the script `count` times as one job array, its output nowhere.

        Returns the seconds from the submission until none is left.
        """
        start = time.perf_counter()
        job = _ask(
            ["sbatch", "--parsable", f"--array=0-{count - 1}", "--output=/dev/null", str(script)],
            self.env,
        )
        if not job:
            raise PeerUnavailable("sbatch refused the array")
        while _ask(["squeue", "--noheader", "--format=%i", f"--job={job}"], self.env):
            time.sleep(_ARRAY_POLL_SECONDS)
        return time.perf_counter() - start


@contextmanager
def one_machine_slurm(folder: Path, cluster: Cluster = LAUNCHES) -> Iterator[Slurm]:
    """A cluster on this machine, its files in `folder`.

    Raises PeerUnavailable where it can't be had, with the reason and the mend.
    """
    missing = [name for name in _PROGRAMS if not _program(name)]
    if missing:
        raise PeerUnavailable(
            f"{', '.join(missing)} not installed (Debian: apt-get install slurm-wlm munge)"
        )
    address = _loopback_address()
    _lay_out(folder, address, cluster)
    daemons_env = {**plain_environment(), "SLURM_CONF": str(folder / "slurm.conf")}
    client_env = {**plain_environment(), "SLURM_CONF": str(folder / "client.conf")}
    with ExitStack() as stack:
        for name, argv in _daemons(folder, cluster):
            stack.enter_context(_daemon(argv, daemons_env, folder / f"{name}.log"))
            if name == "munged":
                _wait_until(lambda: (folder / "munge" / "socket").is_socket(), "munged", folder)
        _wait_until(lambda: _idle_nodes(client_env) == len(cluster.nodes), "slurmctld", folder)
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


def _lay_out(folder: Path, address: str, cluster: Cluster) -> None:
    """Writes the key and the configuration."""
    folder.mkdir(mode=0o700)
    (folder / "munge").mkdir(mode=0o700)
    key = os.open(folder / "munge" / "key", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(key, "wb") as file:
        file.write(os.urandom(128))
    for name in ("state", *(f"spool-{node}" for node in cluster.nodes)):
        (folder / name).mkdir(mode=0o755)
    (folder / "plugstack.conf").touch()

    host = socket.gethostname().partition(".")[0]
    ports = _free_ports(1 + len(cluster.nodes))
    here = {
        "host": host,
        "address": address,
        "ports": ports,
        "folder": folder,
        "user": _user(),
        "mail": shutil.which("true"),
        "settings": cluster.settings.format(true=shutil.which("true")),
    }
    cpus = cluster.cpus or os.cpu_count()
    nodes = "".join(
        f"NodeName={node} NodeHostname={host} NodeAddr={address} Port={port} CPUs={cpus}\n"
        for node, port in zip(cluster.nodes, ports[1:], strict=True)
    )
    named = ",".join(cluster.nodes)
    nodes += f"PartitionName=bench Nodes={named} Default=YES MaxTime=INFINITE State=UP\n"
    bound = "CommunicationParameters=NoInAddrAny,NoCtldInAddrAny"
    (folder / "slurm.conf").write_text(_CONFIGURATION.format(**here, communication=bound) + nodes)
    # slurmd calls srun back at the address that its call came from, 127.0.0.1. Where the host's
    # name is another one (Debian's 127.0.1.1), an srun bound to it never hears; it binds to any.
    client = bound if address == "127.0.0.1" else ""
    (folder / "client.conf").write_text(_CONFIGURATION.format(**here, communication=client) + nodes)


def _daemons(folder: Path, cluster: Cluster) -> Iterator[tuple[str, list[str]]]:
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
    for node in cluster.nodes:
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
