"""One running command, talked to in steps: what the pipe driver and the terminal driver share.

Nothing here sleeps: each step waits for bytes or for the command's end, up to one deadline for the
whole conversation. A command that is stuck is ended with its session, by ids, and the error shows
what had been seen. Linux only (pidfd, /proc).
"""

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from .actions import Action, CloseInput, CloseOutput, Expect, Resize, Send, Signal

LAUNCHER = Path(__file__).with_name("launch.py")
CHUNK_BYTES = 1 << 18
SHOWN_BYTES = 1000
MOST_BYTES = 200_000_000

Argv = Sequence[str | bytes]
Stream = Literal["stdout", "stderr"]


class Stuck(Exception):
    """A command neither did what its script waits for nor ended, until the deadline.

    No AssertionError, so that an expected difference (xfail) can't hide a hang.
    """


class Ended(AssertionError):
    """A command ended before it did what its script waits for."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What a command starts with, beside its terminal or pipes."""

    cwd: Path
    env: Mapping[bytes, bytes]
    deadline_seconds: float = 10.0


def launch(
    argv: Argv, setting: Setting, kind: Literal["tty", "pipes"], stdio: tuple[int, int, int]
) -> subprocess.Popen[bytes]:
    """Start `argv` as the leader of a session of its own."""
    stdin, stdout, stderr = stdio
    return subprocess.Popen(
        [sys.executable, "-I", "-S", str(LAUNCHER), kind, *argv],
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        cwd=setting.cwd,
        env=setting.env,
        start_new_session=True,
    )


class Conversation(ABC):
    """A command, what it has said so far, and what there is still to tell it."""

    def __init__(self, process: subprocess.Popen[bytes], setting: Setting) -> None:
        self.pid = process.pid
        self._process = process
        self._argv = process.args
        self._deadline_seconds = setting.deadline_seconds
        self._deadline = time.monotonic() + setting.deadline_seconds
        self._said: dict[Stream, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        self._found_to: dict[Stream, int] = {"stdout": 0, "stderr": 0}
        self._unsent = bytearray()
        self._exited = False
        self._resources = contextlib.ExitStack()
        self._selector = self._resources.enter_context(selectors.DefaultSelector())
        self._pidfd = os.pidfd_open(self.pid)
        self._resources.callback(os.close, self._pidfd)
        self._watch(self._pidfd, selectors.EVENT_READ, self._on_exit)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        kill_session(self.pid)
        self._process.wait()
        self._resources.close()

    @property
    def stdout(self) -> bytes:
        """What was said on standard output; on a terminal, all that it showed."""
        return bytes(self._said["stdout"])

    @property
    def stderr(self) -> bytes:
        return bytes(self._said["stderr"])

    @property
    def exit_code(self) -> int:
        """As a shell's `$?` shows it: 128+N when a signal ended the command."""
        code = self._process.wait()
        return code if code >= 0 else 128 - code

    def perform(self, action: Action) -> None:
        match action:
            case Expect(data, stream):
                self.expect(data, stream)
            case Send(data):
                self.send(data)
            case Signal(number):
                self.signal(number)
            case Resize(rows, columns):
                self.resize(rows, columns)
            case CloseInput():
                self.close_input()
            case CloseOutput():
                self.close_output()

    def expect(self, data: bytes, stream: Stream = "stdout") -> None:
        """Wait until `data` has been said, after what the last `expect` found."""
        said = self._said[stream]
        start = self._found_to[stream]
        self._wait_until(
            lambda: self._ended or said.find(data, start) >= 0, f"{stream} to show {data!r}"
        )
        at = said.find(data, start)
        if at < 0:
            what = f"exited with {self.exit_code} before its {stream} showed {data!r}"
            raise Ended(f"{what}; {self._account()}")
        self._found_to[stream] = at + len(data)

    def send(self, data: bytes) -> None:
        """Hand over all of `data`, as far as there is still someone to read it."""
        self._unsent += data
        self._send_more()
        self._wait_until(lambda: self._ended or not self._unsent, "its input to be taken")

    def signal(self, number: signal.Signals) -> None:
        """Signal the process group of what was started."""
        if not self._exited:
            os.killpg(self.pid, number)

    def finish(self) -> None:
        """Wait for the command's end, and for all that it said."""
        self._wait_until(lambda: self._ended, "its end")

    @abstractmethod
    def resize(self, rows: int, columns: int) -> None: ...

    @abstractmethod
    def close_input(self) -> None: ...

    @abstractmethod
    def close_output(self) -> None:
        """Stop reading, and forget what was read beyond the last `expect`: how much is chance."""

    @property
    @abstractmethod
    def _ended(self) -> bool:
        """Whether the command is over and all that it said is here."""

    @abstractmethod
    def _send_more(self) -> None:
        """Write what is unsent, as far as it can be taken now; watch for the rest."""

    def _on_exit(self, _events: int) -> None:
        self._exited = True
        self._selector.unregister(self._pidfd)

    def _watch(self, fd: int, events: int, ready: Callable[[int], None]) -> None:
        self._selector.register(fd, events, ready)

    def _wait_until(self, done: Callable[[], bool], what: str) -> None:
        while not done():
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise Stuck(f"waited {self._deadline_seconds:g} s for {what}; {self._account()}")
            if len(self._said["stdout"]) > MOST_BYTES:
                raise Stuck(f"waited through {MOST_BYTES} bytes for {what}; {self._account()}")
            for key, events in self._selector.select(left):
                key.data(events)

    def _account(self) -> str:
        parts = [f"command {self._argv!r}"]
        for stream, said in self._said.items():
            cut = f"… (of {len(said)} bytes)" if len(said) > SHOWN_BYTES else ""
            parts.append(f"{stream} {cut}{bytes(said[-SHOWN_BYTES:])!r}")
        if self._unsent:
            parts.append(f"{len(self._unsent)} bytes not taken by it")
        return "\n  ".join(parts)


def kill_session(leader: int) -> None:
    """End every process of the session that `leader` leads, itself included."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                _, _, after_name = (entry / "stat").read_bytes().rpartition(b")")
                if int(after_name.split()[3]) == leader:
                    os.kill(int(entry.name), signal.SIGKILL)
