"""A task's standard streams as the kernel has them: a terminal of its own, or pipes."""

from __future__ import annotations

import fcntl
import os
import stat
import struct
import termios

from updraft.wire import frames

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Stdio:
    """Both ends of the streams, until each is where it belongs.  Raises ``OSError``."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.ours: dict[int, int] = {}
        """The keeper's ends, by stream; one that goes to another's place has none."""
        self.theirs: list[int] = []
        """What the leader gets: stdin, stdout, stderr, and the terminal if there is one."""
        try:
            if spec["tty"] is not None:
                self._open_terminal(spec["tty"])
            else:
                self._open_pipes(spec)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close what is still here."""
        for fd in (*self.ours.values(), *set(self.theirs)):
            os.close(fd)
        self.ours.clear()
        self.theirs.clear()

    def take(self, stream: int) -> int | None:
        """Hand over the keeper's end of a stream, None where it has none."""
        return self.ours.pop(stream, None)

    def give_away(self, isolation: dict[str, Any]) -> None:
        """Let an isolated task open its own streams by name: they are its owner's."""
        from updraft.runner.keeper.isolation import (  # noqa: PLC0415 - a personal runner needs none
            terminal_group,
        )

        for fd in set(self.theirs):
            if os.isatty(fd):
                os.fchown(fd, isolation["uid"], terminal_group())
                os.fchmod(fd, 0o620)
            elif stat.S_ISFIFO(os.fstat(fd).st_mode):
                os.fchown(fd, isolation["uid"], isolation["gid"])

    def _open_terminal(self, tty: dict[str, Any]) -> None:
        master, slave = os.openpty()
        self.ours[frames.STDOUT] = master
        self.theirs += [slave, slave]
        os.set_blocking(master, False)
        if tty["attributes"] is not None:
            _set_attributes(slave, tty["attributes"])
        set_size(master, tty["rows"], tty["columns"])
        self.ours[frames.STDIN] = os.dup(master)
        self.theirs.append(slave if tty["stderr"] else self._pipe(frames.STDERR))
        self.theirs.append(slave)

    def _open_pipes(self, spec: dict[str, Any]) -> None:
        if spec["stdin"]:
            read, write = os.pipe()
            self.ours[frames.STDIN] = write
            self.theirs.append(read)
            os.set_blocking(write, False)
        else:
            self.theirs.append(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
        self.theirs.append(self._pipe(frames.STDOUT))
        self.theirs.append(self.theirs[-1] if spec["one_output"] else self._pipe(frames.STDERR))

    def _pipe(self, stream: int) -> int:
        read, write = os.pipe()
        os.set_blocking(read, False)
        self.ours[stream] = read
        return write


def set_size(fd: int, rows: int, columns: int) -> None:
    """Give a terminal a size; the kernel tells its foreground processes."""
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def _set_attributes(fd: int, attributes: list[Any]) -> None:
    """Make the terminal like the client's: its modes and control characters."""
    current = termios.tcgetattr(fd)
    # Speeds are a property of the client's line, not of ours.
    values = [*attributes[:4], current[4], current[5], attributes[6]]
    try:
        termios.tcsetattr(fd, termios.TCSANOW, values)
    except (termios.error, TypeError, ValueError, OverflowError):
        return
