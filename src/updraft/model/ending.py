"""How an attempt's end becomes a job's: a pure decision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from updraft.model.job import Outcome, RetryOn
from updraft.model.states import State

_NOT_FOUND = 127
_NOT_EXECUTABLE = 126
_ENOENT = 2
_SIGKILL = 9


def exit_code_of(status: int) -> int:
    """Return the shell's exit code for a wait status: the command's own, or 128 + signal."""
    signal_number = status & 0x7F
    return 128 + signal_number if signal_number else (status >> 8) & 0xFF


def reason_to_retry(end: Mapping[str, Any], outcome: Outcome) -> RetryOn | None:
    """Return after what this end's task could be tried again; None: after nothing like it."""
    if "lost" in end:
        return RetryOn.LOST
    if "refused" in end or "unstarted" in end or outcome.state is State.CANCELLED:
        return None
    if end.get("why") == "deadline":
        return None
    if outcome.state is State.EXPIRED:
        return RetryOn.EXPIRED
    if outcome.state is State.FAILURE:
        return RetryOn.OOM if end.get("out_of_memory") else None
    return None if outcome.ok else RetryOn.EXIT


def outcome_of(end: Mapping[str, Any], command: str, memory_bytes: int = 0) -> Outcome:
    """Return what the end that a keeper reports means for the task.

    ``end`` has one of ``status`` (a wait status), ``refused`` (the step that failed before the
    command ran) or ``lost``; ``why`` names who ended it, if it was ended.
    """
    if "lost" in end:
        return Outcome(State.FAILURE, None, f"{end['lost']}, and its processes were ended")
    if "refused" in end:
        return _refused(end, command)
    code = exit_code_of(end["status"])
    match end.get("why"):
        case "cancel":
            return Outcome(State.CANCELLED, code, "cancelled")
        case "stop":
            return Outcome(State.CANCELLED, code, "cancelled: the server was stopped")
        case "deadline":
            return Outcome(State.EXPIRED, code, "its deadline was reached")
        case "time":
            return Outcome(State.EXPIRED, code, "its time limit was reached; raise --time")
    signal_number = end["status"] & 0x7F
    full = ""
    if end.get("out_of_memory"):
        full = _out_of_memory(end["out_of_memory"], memory_bytes)
        if signal_number == _SIGKILL:
            return Outcome(State.FAILURE, code, full)
        # The command went on without a child of its: how it fared is for it to say.
        full = f", after one of its processes ran {full}"
    if signal_number:
        message = f"ended by signal {signal_number}{full}"
        return Outcome(State.SUCCESS, code, message, signal_number)
    return Outcome(State.SUCCESS, code, f"exited with {code}{full}")


def _out_of_memory(whose: str | bool, memory_bytes: int) -> str:
    if whose == "machine":
        return "out of memory: the machine had none left; ask for what it needs with --memory"
    return f"out of memory: limit {memory_bytes >> 20} MiB reached; raise --memory"


def _refused(end: Mapping[str, Any], command: str) -> Outcome:
    reason = str(end["message"])
    if end["refused"] == "exec":
        if end["errno"] == _ENOENT:
            return Outcome(State.SUCCESS, _NOT_FOUND, f"{command}: command not found")
        return Outcome(State.SUCCESS, _NOT_EXECUTABLE, f"{command}: {reason}")
    step = {"directory": "cannot enter the directory", "limits": "cannot set the limits"}.get(
        end["refused"], "cannot start"
    )
    mend = "; choose one that is there with -C" if end["refused"] == "directory" else ""
    return Outcome(State.FAILURE, None, f"{step}: {reason}{mend}")
