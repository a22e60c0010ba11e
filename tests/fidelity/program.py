"""One row of the fidelity table."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from .actions import Action

PROMPT = b"fidelity> "


@dataclass(frozen=True, slots=True)
class Program:
    """A command, and what is written, typed and signalled to it.

    It is either an `argv`, run bare and then with `urun` in front; or `around`, a bash script in
    which `$RUN` stands where `urun` goes (for nothing, when bare), for what takes a shell.

    Modes: `pipes` has no terminal; `pty` runs it on one; `shell` runs an interactive bash on one,
    with `$RUN` set, and the actions type commands at its PROMPT.

    `stdin` is the input, or its beginning where actions send more; it ends after the last action.
    A terminal's input never ends by itself; `typed` is in it before the command starts.
    """

    name: str
    argv: tuple[str | bytes, ...] = ()
    around: str = ""
    mode: Literal["pipes", "pty", "shell"] = "pipes"
    stdin: bytes = b""
    typed: bytes = b""
    actions: tuple[Action, ...] = ()
    env: Mapping[bytes, bytes] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)
    size: tuple[int, int] = (24, 80)
    exception: str | None = None
    """Why `urun` is known to differ; the documentation lists it."""

    @property
    def id(self) -> str:
        return f"{self.mode}-{self.name}"
