"""How an attempt's end is told: the state is Updraft's doing, the exit code the command's."""

import os
import signal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from updraft.model.ending import exit_code_of, outcome_of
from updraft.model.states import State


def status_of(code: int = 0, number: int = 0, *, dumped: bool = False) -> int:
    """The wait status of a command that exits with ``code`` or is ended by signal ``number``."""
    return code << 8 | number | (0x80 if dumped else 0)


@given(st.integers(0, 255))
def test_a_command_that_exits_ends_in_success_with_its_exit_code(code: int) -> None:
    outcome = outcome_of({"status": status_of(code)}, "train")
    assert (outcome.state, outcome.exit_code) == (State.SUCCESS, code)
    assert outcome.ok == (code == 0)
    assert outcome.message == f"exited with {code}"


@given(st.integers(1, 64), st.booleans())
def test_a_command_that_a_signal_ends_has_128_and_the_signal(number: int, dumped: bool) -> None:
    outcome = outcome_of({"status": status_of(number=number, dumped=dumped)}, "train")
    assert (outcome.state, outcome.exit_code) == (State.SUCCESS, 128 + number)
    assert not outcome.ok
    assert outcome.message == f"ended by signal {number}"


@pytest.mark.parametrize("command", [["sh", "-c", "exit 3"], ["sh", "-c", "kill -9 $$"]])
def test_a_wait_status_is_read_as_python_reads_it(command: list[str]) -> None:
    pid = os.posix_spawnp(command[0], command, {})
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    assert exit_code_of(status) == (code if code >= 0 else 128 - code)


@pytest.mark.parametrize(
    ("why", "state"),
    [
        ("cancel", State.CANCELLED),
        ("stop", State.CANCELLED),
        ("time", State.EXPIRED),
        (None, State.SUCCESS),
    ],
)
@pytest.mark.parametrize("status", [0, status_of(3), status_of(number=signal.SIGTERM)])
def test_who_ended_it_counts_whatever_the_command_made_of_it(
    why: str | None, state: State, status: int
) -> None:
    outcome = outcome_of({"status": status, "why": why}, "train")
    assert (outcome.state, outcome.exit_code) == (state, exit_code_of(status))


def test_the_end_of_time_says_how_to_get_more() -> None:
    outcome = outcome_of({"status": status_of(number=15), "why": "time"}, "train")
    assert "--time" in outcome.message


def test_out_of_memory_says_so_and_how_to_get_more() -> None:
    end = {"status": status_of(number=signal.SIGKILL), "out_of_memory": True}
    outcome = outcome_of(end, "train", 512 << 20)
    assert (outcome.state, outcome.exit_code) == (State.FAILURE, 137)
    assert outcome.message == "out of memory: limit 512 MiB reached; raise --memory"


@pytest.mark.parametrize(
    ("refused", "code", "message"),
    [
        (("exec", 2, "No such file or directory"), 127, "train: command not found"),
        (("exec", 13, "Permission denied"), 126, "train: Permission denied"),
        (("exec", 8, "Exec format error"), 126, "train: Exec format error"),
    ],
)
def test_a_command_that_cannot_be_executed_ends_as_in_a_shell(
    refused: tuple[str, int, str], code: int, message: str
) -> None:
    end = dict(zip(("refused", "errno", "message"), refused, strict=True))
    outcome = outcome_of(end, "train")
    assert (outcome.state, outcome.exit_code, outcome.message) == (State.SUCCESS, code, message)


def test_a_directory_that_is_not_there_is_mended_by_another() -> None:
    end = {"refused": "directory", "errno": 2, "message": "/data/vision: No such file or directory"}
    assert outcome_of(end, "train").message == (
        "cannot enter the directory: /data/vision: No such file or directory; choose one that is "
        "there with -C"
    )


@pytest.mark.parametrize(
    "end",
    [
        {"refused": "directory", "errno": 2, "message": "No such file or directory"},
        {"refused": "limits", "errno": 1, "message": "Operation not permitted"},
        {"refused": "start", "errno": 24, "message": "Too many open files"},
        {"refused": "a step to come", "errno": 0, "message": "?"},
        {"lost": "its keeper was killed"},
    ],
)
def test_what_the_platform_failed_is_a_failure_without_an_exit_code(end: dict[str, Any]) -> None:
    outcome = outcome_of(end, "train")
    assert (outcome.state, outcome.exit_code) == (State.FAILURE, None)
    assert str(end.get("message", end.get("lost"))) in outcome.message
    assert not outcome.ok


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "why": st.sampled_from([None, "cancel", "stop", "time", "?"]),
            "out_of_memory": st.booleans(),
            "at": st.integers(),
        },
    ),
    st.integers(0, 0xFFFF),
)
def test_every_end_is_terminal_and_has_one_line(end: dict[str, Any], status: int) -> None:
    outcome = outcome_of({**end, "status": status}, "train", 1 << 20)
    assert outcome.state.terminal
    assert outcome.exit_code is not None
    assert 0 <= outcome.exit_code <= 255
    assert outcome.message
    assert "\n" not in outcome.message
