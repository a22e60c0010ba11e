"""What ``updraft doctor`` looks at: each check returns findings, and changes nothing."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import updraft
from updraft import bootstrap, configuration, errors, settings
from updraft.cli.output import text
from updraft.runner.agent.gpus import AMD, NVIDIA, find_gpus
from updraft.wire import sockets

if TYPE_CHECKING:
    from updraft.wire.fleet_schemas import RunnerInfo
    from updraft.wire.schemas import Status

OK, WARN, FAIL = "OK", "WARN", "FAIL"

_CGROUPS_MEND = "let Updraft have cgroups, as is said where limits are not enforced"
_LOW_SPACE_BYTES = 1 << 30
_FEW_FILES = 4096
_SHOWN = 3
_PR_GET_CHILD_SUBREAPER = 37


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was looked at, how it is, and what to do about it."""

    level: str
    check: str
    finding: str
    mend: str = ""


def here(folders: settings.Folders) -> Iterator[Finding]:
    """Yield what is found about this installation."""
    for check in _LOCAL:
        yield from check(folders)


def running(
    folders: settings.Folders, status: Status | None, joined: Sequence[RunnerInfo] | None
) -> Iterator[Finding]:
    """Yield what is found about the server whose ``status`` it is; None when there is none.

    ``joined``: the runners of one without a runner of its own.
    """
    yield from _server(folders, status)
    yield from _runner(status) if joined is None else _joined(joined)
    yield from _staying(status)


def kernel(folders: settings.Folders) -> Iterator[Finding]:
    """Yield what is found about what the kernel allows, and the GPUs."""
    if sys.platform == "linux":
        yield from _cgroups(folders)
        yield from _process_trees(folders)
    else:
        yield from _lacking_here()
    yield from _gpus(folders)


# -- this installation


def _python(_folders: settings.Folders) -> Iterator[Finding]:
    found = f"{platform.python_implementation()} {platform.python_version()} at {sys.executable}"
    yield Finding(OK, "python", found)  # an older one than we need could not load this file
    yield Finding(OK, "updraft", f"{updraft.__version__} at {Path(updraft.__file__).parent}")


def _user(_folders: settings.Folders) -> Iterator[Finding]:
    uid = os.geteuid()
    if uid != os.getuid():
        yield Finding(
            FAIL,
            "user",
            f"real user {os.getuid()}, effective user {uid}",
            "run Updraft as one user; it refuses what is another's",
        )
        return
    yield Finding(OK, "user", f"uid {uid}{' (root)' if uid == 0 else ''}")


def _configuration(folders: settings.Folders) -> Iterator[Finding]:
    there = Path(folders.config_file).exists()
    try:
        configuration.check(folders)
    except errors.BadConfiguration as error:
        yield Finding(FAIL, "configuration", error.message, "correct the file")
        return
    found = folders.config_file if there else f"none at {folders.config_file}; defaults hold"
    yield Finding(OK, "configuration", found)


def _state(folders: settings.Folders) -> Iterator[Finding]:
    state = folders.state
    place = state
    while not os.path.lexists(place):
        place = str(Path(place).parent)
    mend = "set UPDRAFT_HOME to a folder of your own on a local disk"
    try:
        bootstrap.check_owner(place)
    except (errors.NotAllowed, OSError) as error:
        yield Finding(FAIL, "state folder", str(error), mend)
        return
    if not os.access(place, os.W_OK | os.X_OK):
        yield Finding(FAIL, "state folder", f"{place} cannot be written to", mend)
        return
    kind = bootstrap.file_system(place) or "unknown"
    real = os.path.realpath(state)
    where = state if real == state else f"{state} → {real}"
    made = "" if place == state else "; made at the first run"
    network = bootstrap.is_network(kind)
    if network and place == state:
        yield Finding(WARN, "state folder", f"{where} on {kind}, a network file system", mend)
    elif network:
        yield Finding(OK, "state folder", f"{where} on {kind}; a local folder will stand in for it")
    else:
        yield Finding(OK, "state folder", f"{where} on {kind}{made}")
    free = shutil.disk_usage(place).free
    if free < _LOW_SPACE_BYTES:
        yield Finding(
            WARN,
            "disk",
            f"{text.size(free)} free in {place}",
            "free some space, or lower server.retention and server.retention_size",
        )
    else:
        yield Finding(OK, "disk", f"{text.size(free)} free")


def _socket(folders: settings.Folders) -> Iterator[Finding]:
    long = len(os.fsencode(folders.socket)) > sockets.MAX_PATH_BYTES
    found = f"{folders.socket}{' (long: reached through its folder)' if long else ''}"
    if not os.path.lexists(folders.socket):
        yield Finding(OK, "socket", f"{found}; not there while no server runs")
        return
    try:
        bootstrap.connect(folders).close()
    except ConnectionRefusedError:
        yield Finding(OK, "socket", f"{found}; a dead one, replaced at the next start")
    except errors.NotAllowed as error:
        yield Finding(FAIL, "socket", error.message, "set UPDRAFT_HOME to a folder of your own")
    except OSError as error:
        yield Finding(FAIL, "socket", f"{found}: {error.strerror}", "updraft stop, then try again")
    else:
        yield Finding(OK, "socket", found)


def _terminals(_folders: settings.Folders) -> Iterator[Finding]:
    try:
        master, slave = os.openpty()
    except OSError as error:
        yield Finding(
            FAIL,
            "terminals",
            f"no pty can be opened: {error.strerror}",
            "mount devpts at /dev/pts, with /dev/ptmx readable and writable for you",
        )
        return
    os.close(master)
    os.close(slave)
    yield Finding(OK, "terminals", "ptys can be opened")


def _open_files(_folders: settings.Folders) -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = "unlimited" if hard == resource.RLIM_INFINITY else str(hard)
    found = f"{soft} now, {most} at most"
    if hard != resource.RLIM_INFINITY and hard < _FEW_FILES:
        yield Finding(
            WARN, "open files", found, "raise the hard limit (ulimit -Hn) for hundreds of jobs"
        )
    else:
        yield Finding(OK, "open files", found)


_LOCAL: tuple[Callable[[settings.Folders], Iterator[Finding]], ...] = (
    _python,
    _user,
    _configuration,
    _state,
    _socket,
    _terminals,
    _open_files,
)


# -- what runs


def _server(folders: settings.Folders, status: Status | None) -> Iterator[Finding]:
    if status is None:
        yield Finding(OK, "server", "not running; the next urun starts it")
        return
    found = f"{status.server.version}, pid {status.server.pid}"
    if status.server.version != updraft.__version__:
        yield Finding(
            WARN,
            "server",
            f"{found}; {updraft.__version__} is installed",
            "it is replaced by itself; if not: updraft stop",
        )
    else:
        yield Finding(OK, "server", f"{found}; its log is {folders.server_log}")


def _runner(status: Status | None) -> Iterator[Finding]:
    if status is None:
        return
    runner = status.runner
    if not runner.connected:
        yield Finding(
            WARN, "runner", "not connected", "it is started again by itself; if not, see the log"
        )
        return
    found = f"{runner.version}, keeper {runner.pid}, agent {runner.agent_pid}"
    if runner.version != updraft.__version__:
        yield Finding(
            WARN,
            "runner",
            f"{found}; {updraft.__version__} is installed",
            "it is replaced once no job lives; to do it now: updraft stop --drain",
        )
    else:
        yield Finding(OK, "runner", f"{found}, {runner.cpus:g} CPUs")


def _joined(runners: Sequence[RunnerInfo]) -> Iterator[Finding]:
    if not runners:
        mend = "let a machine join: updraft runner token POOL --line"
        yield Finding(WARN, "runners", "none has joined", mend)
        return
    states = Counter(runner.state for runner in runners)
    found = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    away = [runner.name for runner in runners if runner.state in ("away", "lost")]
    if away:
        mend = f"see the log of the runner on {', '.join(away[:_SHOWN])}"
        yield Finding(WARN, "runners", found, mend + (" …" if len(away) > _SHOWN else ""))
    else:
        yield Finding(OK, "runners", found)


def _staying(status: Status | None) -> Iterator[Finding]:
    """Whether a logout ends the server with its session."""
    pid = "self" if status is None else str(status.server.pid)
    try:
        groups = Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        return
    if "/session-" not in groups:
        yield Finding(OK, "logout", "no login session's cgroup holds the server")
    else:
        yield Finding(
            WARN,
            "logout",
            "the server is in a login session's cgroup, which a logout may end",
            "loginctl enable-linger, or KillUserProcesses=no in logind.conf",
        )


# -- what the kernel allows


def _cgroups(folders: settings.Folders) -> Iterator[Finding]:
    from updraft.runner.keeper import cgroups  # noqa: PLC0415 - Linux only

    for what, holds, sentence in cgroups.describe(folders.runner):
        sentence, _, mend = sentence.partition("; ")
        level = OK if holds else WARN
        yield Finding(level, what, sentence, "" if holds else mend or _CGROUPS_MEND)


def _process_trees(_folders: settings.Folders) -> Iterator[Finding]:
    from updraft.runner.keeper import processes  # noqa: PLC0415

    child = os.fork()
    if child == 0:  # in a process of its own: it would stay a subreaper
        os._exit(0 if processes.become_subreaper() else 1)
    _, ended = os.waitpid(child, 0)
    if ended == 0:
        yield Finding(OK, "process trees", "orphans are adopted (PR_SET_CHILD_SUBREAPER)")
    else:
        yield Finding(
            FAIL,
            "process trees",
            "orphans cannot be adopted: what a job leaves behind may outlive it",
            "allow prctl(PR_SET_CHILD_SUBREAPER), which a seccomp filter denies here",
        )
    if hasattr(os, "pidfd_open"):
        yield Finding(OK, "pidfd", "processes are signalled by descriptor, not by number")
    if Path("/proc/self/ns/pid").exists():
        root = os.geteuid() == 0
        found = "allowed to root" if root else "not for this user; cgroups or a subreaper do"
        yield Finding(OK, "PID namespaces", found)


def _lacking_here() -> Iterator[Finding]:
    mend = "run what needs it on Linux"
    system = platform.system()
    for what, lacking in (
        ("memory limits", "there are no cgroups: --memory counts for the queue only"),
        ("process trees", "there is no subreaper: a double fork may outlive its job"),
        ("usage", "peak memory and I/O of a whole task cannot be told"),
        ("kill -9 of keeper", "descendants are found by their session only"),
    ):
        yield Finding(WARN, what, f"{system}: {lacking}", mend)


def _gpus(_folders: settings.Folders) -> Iterator[Finding]:
    found = find_gpus()
    shown = [f"{gpu['kind']}, {text.size(gpu['memory_bytes'])}" for gpu in found]
    vendors = {gpu["vendor"] for gpu in found}
    for vendor, node, how, mend in (
        (NVIDIA, "/dev/nvidiactl", "NVML", "install the driver's libnvidia-ml.so.1, in a container "
         "with the NVIDIA runtime"),
        (AMD, "/dev/kfd", "/sys/class/kfd", "see that /dev/dri/renderD* and /sys are there, too"),
    ):  # fmt: skip
        if Path(node).exists() and vendor not in vendors:
            yield Finding(WARN, "GPUs", f"{node} is there, but {how} tells of no GPU", mend)
    yield Finding(OK, "GPUs", "; ".join(shown) or "none here; --gpus is refused")
