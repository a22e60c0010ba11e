"""How a leader's fresh child becomes a task's command: its limits, its directory, its program."""

from __future__ import annotations

import errno
import os
import resource
import signal

from updraft.wire.packing import pack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any, NoReturn

_SHOWN_PATH = 500
MOVED = b"W"
"""What a command says on its status pipe when it is in its workspace for want of its directory."""

MAX_FD = 1 << 20


def reachable_limits(wanted: list[list[int]], *, root: bool) -> tuple[list[list[int]], list[int]]:
    """Return the limits to set, as far as our own hard limits allow, and which ones fell short."""
    limits: list[list[int]] = []
    clamped: list[int] = []
    for number, soft, hard in wanted:
        try:
            own_soft, own_hard = resource.getrlimit(number)
        except ValueError:  # the client's system has a limit that ours has not
            clamped.append(number)
            continue
        if not root:
            reach = (soft, hard)
            soft, hard = _at_most(soft, own_hard), _at_most(hard, own_hard)
            if (soft, hard) != reach:
                clamped.append(number)
        if (soft, hard) != (own_soft, own_hard):
            limits.append([number, soft, hard])
    return limits, clamped


def become(
    spec: dict[str, Any], stdio: tuple[int, int, int], tty: int | None, status: int
) -> NoReturn:
    """Turn this fresh child into the task's command; report the failing step through ``status``."""
    step = "start"
    try:
        os.setpgid(0, 0)
        if tty is not None:
            os.tcsetpgrp(tty, os.getpgrp())
        step = "limits"
        for group in spec["groups"]:
            os.write(group, b"0")
        for number, soft, hard in spec["rlimits"]:
            resource.setrlimit(number, (soft, hard))
        own_nice = os.getpriority(os.PRIO_PROCESS, 0)
        isolated, environment = spec["isolation"], spec["environment"]
        nice = spec["nice"] if isolated is None else max(spec["nice"], own_nice, 0)
        if nice != own_nice:
            try:
                os.setpriority(os.PRIO_PROCESS, 0, nice)
            except PermissionError:  # a runner that was started nicer than this stays so
                pass
        if isolated is not None:
            step = "isolation"
            isolation().become(isolated)
        step = "directory"
        moved = _enter(spec, status)
        os.umask(spec["umask"])
        step = "start"
        if isolated is not None:
            environment = isolation().surroundings(environment, isolated, moved)
        # The status pipe and the descriptors may lie on 0-2 only if ours were closed; they are not.
        for target, fd in enumerate(stdio):
            os.dup2(fd, target)
        for fd in spec["closed_fds"]:
            os.close(fd)
        high = max(status, 3)
        os.closerange(3, high)
        os.closerange(high + 1, MAX_FD)
        signal.set_wakeup_fd(-1)
        for number in range(1, signal.NSIG):
            if number not in (signal.SIGKILL, signal.SIGSTOP) and number not in (32, 33):
                ignored = number in spec["ignored_signals"]
                signal.signal(number, signal.SIG_IGN if ignored else signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        step = "exec"
        entries = [entry for entry in environment.split(b"\0") if b"=" in entry[1:]]
        search(spec["argv"], dict(entry.split(b"=", 1) for entry in entries), os.execve)
    except BaseException as error:  # noqa: BLE001 - this process has no caller to raise to
        os.write(status, pack(refusal(step, error)))
    finally:
        os._exit(127)


def refusal(step: str, error: BaseException) -> dict[str, Any]:
    """Return the end of a task that failed at a step before its command ran."""
    number = error.errno if isinstance(error, OSError) and error.errno else 0
    text = os.strerror(number) if number else f"{type(error).__name__}: {error}"
    if step == "directory" and isinstance(error, OSError) and error.filename:
        place = os.fsdecode(error.filename).encode(errors="backslashreplace").decode()
        text = f"{place[:_SHOWN_PATH]}: {text}"
    if step == "isolation":  # which step of it: nobody but an administrator can mend that
        text = f"this runner cannot isolate it: {error}"
    return {"refused": step, "errno": number, "message": text}


def isolation() -> ModuleType:
    """Return the module of isolated tasks."""
    from updraft.runner.keeper import isolation  # noqa: PLC0415 - a personal runner needs none

    return isolation


def _at_most(value: int, bound: int) -> int:
    if bound == resource.RLIM_INFINITY:
        return value
    return bound if value == resource.RLIM_INFINITY else min(value, bound)


def _enter(spec: dict[str, Any], status: int) -> bytes | None:
    """Enter the directory; return the workspace if the command is to be there instead."""
    try:
        os.chdir(spec["directory"])
    except OSError:
        if not spec["fallback_directory"]:
            raise
        workspace: bytes = spec["isolation"]["workspace"]
        os.chdir(workspace)
        os.write(status, MOVED)
        return workspace
    return None


def search(
    argv: list[bytes],
    environment: dict[bytes, bytes],
    start: Callable[[bytes, list[bytes], dict[bytes, bytes]], None],
) -> None:
    """Start the program that a command means, searching PATH as execvp does.

    ``start`` takes a path, arguments and environment; it raises ``OSError`` where that cannot be
    executed, and then the next one may be.  Raises ``OSError`` if nothing runs.
    """
    name = argv[0]
    explicit = b"/" in name
    if explicit:
        candidates = [name]
    else:
        path = environment.get(b"PATH", os.fsencode(os.defpath))
        candidates = [(folder or b".") + b"/" + name for folder in path.split(b":")] if name else []
    # A file that is there but may not run (EACCES) says more than one that is not (ENOENT).
    failure = OSError(errno.ENOENT, os.strerror(errno.ENOENT))
    for candidate in candidates:
        try:
            start(candidate, argv, environment)
            return
        except OSError as error:
            if error.errno == errno.ENOEXEC:
                start(b"/bin/sh", [b"/bin/sh", candidate, *argv[1:]], environment)
                return
            passed_over = error.errno in (errno.ENOENT, errno.ENOTDIR) and not explicit
            # A folder that may not be entered (another's, in a PATH from elsewhere) has it not.
            passed_over = passed_over or not (explicit or os.path.lexists(candidate))
            if not passed_over and failure.errno == errno.ENOENT:
                failure = error
    raise failure
