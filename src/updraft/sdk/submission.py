"""Builds a submission from this process: its directory, limits, environment and terminal.

On the launch path: imports only what the import-set test allows.
"""

from __future__ import annotations

import os
import stat

from updraft import errors
from updraft.c_modules import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

try:
    import resource

    _LIMITS = sorted(
        value
        for name, value in vars(resource).items()
        if name.startswith("RLIMIT_") and isinstance(value, int)
    )
except ImportError:  # Windows has no such limits to take along
    _LIMITS = []

_FORWARDED_IF_IGNORED = ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGTSTP")


def surroundings() -> dict[str, Any]:
    """Return what a command started here would inherit, apart from environment and terminal.

    Raises ``errors.BadRequest`` where the current directory was removed.
    """
    try:
        directory = os.getcwdb()
    except FileNotFoundError:
        raise errors.BadRequest(
            "the current directory is gone: somebody removed it; change to another"
        ) from None
    umask = os.umask(0o077)
    os.umask(umask)
    return {
        "directory": directory,
        "umask": umask,
        "nice": os.nice(0) if hasattr(os, "nice") else 0,
        "rlimits": _limits(),
        "ignored_signals": [
            int(number)
            for name in _FORWARDED_IF_IGNORED
            if (number := getattr(signal, name, None)) is not None
            and signal.getsignal(number) == signal.SIG_IGN
        ],
    }


def environment_block(overrides: list[bytes]) -> bytes:
    """Return this process's environment as a NUL-separated block, with ``KEY=VALUE`` overrides."""
    environment = dict(os.environb)
    if environment.get(b"LC_CTYPE") == b"C.UTF-8" and _is_coerced():
        del environment[b"LC_CTYPE"]
    for entry in overrides:
        key, _, value = entry.partition(b"=")
        environment[key] = value
    return b"\0".join(key + b"=" + value for key, value in environment.items())


def _is_coerced() -> bool:
    """Whether it was our interpreter that set LC_CTYPE, as it does where no locale is set."""
    try:
        with open("/proc/self/environ", "rb") as file:
            return b"\0LC_CTYPE=" not in b"\0" + file.read()
    except OSError:
        return False


def pipes(machine: str) -> list[str]:
    """Return the identities of the pipes that are our stdin and stdout, empty where it is none.

    By them the server sees which jobs are stages of one pipeline; ``machine`` tells those of
    several machines apart.
    """
    found = []
    for fd in (0, 1):
        info = os.fstat(fd)
        pipe = f"{machine}:{info.st_dev}:{info.st_ino}"
        found.append(pipe if stat.S_ISFIFO(info.st_mode) else "")
    return found


def submission(argv: list[bytes], *, attached: bool) -> dict[str, Any]:
    """Return a submission of ``argv`` with every field at its default.

    ``attached``: a client stays with the job, takes its output and gives it its input.
    """
    return {
        "key": os.urandom(16),
        "argv": argv,
        "attached": attached,
        "environment": b"",
        "set_environment": [],
        "stdin": attached,
        "closed_fds": [],
        "one_output": False,
        "pipes": ["", ""],
        "tty": None,
        "name": "",
        "labels": {},
        "pool": "",
        "cpus_milli": 1000,
        "memory_bytes": 0,
        "gpus": 0,
        "time_limit_ms": None,
        "retries": 0,
        "fenced": False,
        "priority": 0,
        "keep_alive_ms": 0,
        "grace_ms": 10_000,
        "source": None,
        **surroundings(),
    }


def _limits() -> list[list[int]]:
    return [[number, *resource.getrlimit(number)] for number in _LIMITS]
