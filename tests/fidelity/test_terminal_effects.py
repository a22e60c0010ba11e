"""What `urun` does to its terminal, where no two runs show the same or no bare run compares."""

import os
import select
import signal

import pytest

from .conversation import Stuck
from .program import PROMPT, Program
from .shell_programs import FILES
from .terminal import Terminal
from .terminal_programs import CTRL_C, CTRL_Z
from .trial import Stage

SECONDS_TO_NOTICE = 10

SLEEPS = Program("sleeps", ("sh", "-c", "echo ready; exec sleep 1000"), mode="pty")
# Tells the fifo which signal ended it, or that its input did.
TELLS_SCRIPT = """
for name in HUP TERM; do trap "echo $name >fifo; exit" $name; done
sh -c 'echo ready; exec cat'
echo end of input >fifo
"""
TELLS = Program("tells", ("sh", "-c", TELLS_SCRIPT), mode="pty")


def on_terminal(stage: Stage, program: Program, prefix: list[str]) -> Terminal:
    conversation = stage.converse(program, prefix)
    assert isinstance(conversation, Terminal)
    return conversation


def fifo(stage: Stage) -> int:
    """Make one in the program's directory; open to read, without waiting for a writer."""
    path = stage.root / "work" / "fifo"
    os.mkfifo(path)
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK)


def first_words(fd: int) -> bytes:
    ready, _, _ = select.select([fd], [], [], SECONDS_TO_NOTICE)
    if not ready:
        raise Stuck("nothing was said to the fifo")
    return os.read(fd, 100)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT], ids=lambda n: n.name
)
def test_the_terminal_is_restored_when_the_client_is_signalled(
    number: signal.Signals, stage: Stage, through_urun: list[str]
) -> None:
    with on_terminal(stage, SLEEPS, through_urun) as terminal:
        terminal.expect(b"ready")
        assert (
            terminal.state() != terminal.before
        )  # keys go to the command's own terminal, as they are
        os.kill(terminal.pid, number)
        terminal.finish()
        assert terminal.exit_code == 128 + number
        assert terminal.state() == terminal.before


def test_the_terminal_is_as_before_while_the_command_is_stopped(
    stage: Stage, through_urun: list[str]
) -> None:
    with on_terminal(stage, Program("shell", mode="shell", files=FILES), through_urun) as terminal:
        terminal.expect(PROMPT)
        at_prompt = terminal.state()
        terminal.send(b"$RUN python3 resumable.py\n")
        terminal.expect(b"\r\nready\r\n")
        terminal.send(CTRL_Z)
        terminal.expect(PROMPT)
        assert terminal.state() == at_prompt
        terminal.send(b"fg\n")
        terminal.expect(b"resumed\r\n")
        assert terminal.state() != at_prompt
        terminal.send(CTRL_C)
        terminal.expect(PROMPT)
        assert terminal.state() == at_prompt


@pytest.mark.parametrize("through", [False, True], ids=["bare", "through-urun"])
def test_top_runs_and_leaves_the_terminal_as_it_was(
    through: bool, stage: Stage, urun_prefix: list[str]
) -> None:
    top = Program("top", ("top",), mode="pty")
    with on_terminal(stage, top, urun_prefix if through else []) as terminal:
        terminal.expect(b"PID")
        terminal.send(b"q")
        terminal.finish()
        assert terminal.exit_code == 0
        assert terminal.state() == terminal.before


@pytest.mark.parametrize("through", [False, True], ids=["bare", "through-urun"])
def test_a_terminal_that_goes_away_hangs_up_on_the_command(
    through: bool, stage: Stage, urun_prefix: list[str]
) -> None:
    with on_terminal(stage, TELLS, urun_prefix if through else []) as terminal:
        told = fifo(stage)
        terminal.expect(b"ready")
        terminal.hang_up()
        assert first_words(told) == b"HUP\n"
        terminal.finish()
    os.close(told)


def test_a_client_that_is_killed_hangs_up_on_the_command(
    stage: Stage, through_urun: list[str]
) -> None:
    with on_terminal(stage, TELLS, through_urun) as terminal:
        told = fifo(stage)
        terminal.expect(b"ready")
        os.kill(terminal.pid, signal.SIGKILL)
        assert first_words(told) == b"HUP\n"
    os.close(told)
