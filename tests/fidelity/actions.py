"""What a script may do to a running command: the words of a program's `actions`."""

import signal
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Expect:
    """Wait until these bytes appear, after those that the last Expect found."""

    data: bytes
    stream: Literal["stdout", "stderr"] = "stdout"


@dataclass(frozen=True, slots=True)
class Send:
    """Type these bytes at the terminal, or write them to the command's standard input."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Signal:
    """Send a signal to the process group of what was started: the command bare, or `urun`."""

    number: signal.Signals


@dataclass(frozen=True, slots=True)
class Resize:
    """Give the terminal another size, as dragging its window does."""

    rows: int
    columns: int


@dataclass(frozen=True, slots=True)
class CloseInput:
    """Let the command read the end of its input, while its output stays open."""


@dataclass(frozen=True, slots=True)
class CloseOutput:
    """Stop reading the command's output, as `head` does when it has seen enough."""


Action = Expect | Send | Signal | Resize | CloseInput | CloseOutput
