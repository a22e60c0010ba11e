"""The client's own terminal: its size and modes, changed while it is used, restored after."""

from __future__ import annotations

import fcntl
import os
import struct
import termios

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_CONTROLS = (
    termios.VINTR,
    termios.VQUIT,
    termios.VERASE,
    termios.VKILL,
    termios.VEOF,
    termios.VSTART,
    termios.VSTOP,
    termios.VSUSP,
    termios.VEOL2,
    termios.VREPRINT,
    termios.VDISCARD,
    termios.VWERASE,
    termios.VLNEXT,
)


class Terminal:
    """The terminal behind a descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._saved: list[Any] | None = None

    @property
    def raw(self) -> bool:
        """Whether its modes are changed now: the job has the terminal."""
        return self._saved is not None

    def size(self) -> tuple[int, int]:
        """Return (rows, columns); 24 by 80 where it cannot be told."""
        try:
            answer = fcntl.ioctl(self._fd, termios.TIOCGWINSZ, b"\0" * 8)
        except OSError:
            return 24, 80
        rows, columns, _, _ = struct.unpack("HHHH", answer)
        return rows, columns

    def attributes(self) -> list[Any] | None:
        """Return the modes and control characters, for the job's terminal to have the same."""
        try:
            return termios.tcgetattr(self._fd)
        except termios.error:
            return None

    def foreground(self) -> bool:
        """Whether we may read and change it without being stopped."""
        try:
            return os.tcgetpgrp(self._fd) == os.getpgrp()
        except OSError:
            return True  # not our controlling terminal: nothing stops us

    def make_raw(self) -> None:
        """Pass every byte through: the job's terminal does the editing and the signals."""
        mode = self._take()
        if mode is None:
            return
        mode[0] &= ~(
            termios.IGNBRK
            | termios.BRKINT
            | termios.PARMRK
            | termios.ISTRIP
            | termios.INLCR
            | termios.IGNCR
            | termios.ICRNL
            | termios.IXON
        )
        mode[1] &= ~termios.OPOST
        mode[2] = (mode[2] & ~(termios.CSIZE | termios.PARENB)) | termios.CS8
        mode[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
        mode[6][termios.VMIN] = 1
        mode[6][termios.VTIME] = 0
        termios.tcsetattr(self._fd, termios.TCSADRAIN, mode)

    def end_lines_on(self, keys: bytes, *, reads: bool) -> None:
        """Have the last of ``keys`` end a line too, and no key of theirs mean anything else.

        For a job without a terminal: editing of lines and Ctrl-C stay this terminal's.  ``reads``:
        whether the job reads what is typed; else it is not shown, and Ctrl-D ends nothing.
        """
        mode = self._take()
        if mode is None:
            return
        mode[0] &= ~termios.IXON  # Ctrl-Q and Ctrl-S would not reach us
        characters = mode[6]
        none = bytes([os.fpathconf(self._fd, "PC_VDISABLE")])
        for each in _CONTROLS:
            if characters[each] in keys:
                characters[each] = none
        if not reads:
            mode[3] &= ~termios.ECHO
            characters[termios.VEOF] = none
        characters[termios.VEOL] = keys[-1:]
        termios.tcsetattr(self._fd, termios.TCSADRAIN, mode)

    def _take(self) -> list[Any] | None:
        """Keep the modes for ``restore``, and return a copy to change; None: leave them alone."""
        if self._saved is not None or not self.foreground():
            return None
        try:
            saved = termios.tcgetattr(self._fd)
        except termios.error:
            return None
        self._saved = saved
        return [*saved[:6], list(saved[6])]

    def restore(self) -> None:
        """Give the terminal back as it was."""
        saved, self._saved = self._saved, None
        if saved is None:
            return
        try:
            termios.tcsetattr(self._fd, termios.TCSADRAIN, saved)
        except termios.error:
            return
