"""Run a command on a terminal of its own: a pty, as the controlling terminal of a new session."""

import fcntl
import os
import selectors
import struct
import termios
from dataclasses import dataclass

from .conversation import CHUNK_BYTES, Argv, Conversation, Setting, launch

# Written to the terminal by us when the command has ended: whatever the command wrote stands before
# it, even where the kernel is still passing it on.
END_MARK = b"\0FIDELITY-END\0"


@dataclass(frozen=True, slots=True)
class TerminalState:
    """What stays with a terminal when a command has ended: modes, special characters, size."""

    input_flags: int
    output_flags: int
    control_flags: int
    local_flags: int
    characters: tuple[int, ...]
    rows: int
    columns: int


class Terminal(Conversation):
    """A command whose standard input, output and error are one terminal, its /dev/tty."""

    def __init__(
        self, argv: Argv, setting: Setting, *, rows: int = 24, columns: int = 80, typed: bytes = b""
    ) -> None:
        """`typed` is in the terminal before the command starts."""
        self._master, theirs = os.openpty()
        # Kept open to the end: a pty forgets its modes when the last one closes it. Opened anew:
        # O_NONBLOCK on `theirs` would be the command's as well.
        self._slave = os.open(os.ttyname(theirs), os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        os.set_blocking(self._master, False)
        self._set_size(rows, columns)
        self.before = self.state()
        os.write(self._master, typed)
        process = launch(argv, setting, "tty", (theirs, theirs, theirs))
        os.close(theirs)
        super().__init__(process, setting)
        self._unmarked = bytearray(END_MARK)
        self._drained = False
        self._hung_up = False
        self._resources.callback(self.hang_up)
        self._resources.callback(os.close, self._slave)
        self._watch(self._master, selectors.EVENT_READ, self._on_master)

    def state(self) -> TerminalState:
        input_flags, output_flags, control_flags, local_flags, _, _, characters = termios.tcgetattr(
            self._slave
        )
        rows, columns, _, _ = struct.unpack(
            "4H", fcntl.ioctl(self._slave, termios.TIOCGWINSZ, bytes(8))
        )
        return TerminalState(
            input_flags,
            output_flags,
            control_flags,
            local_flags,
            tuple(value if isinstance(value, int) else value[0] for value in characters),
            rows,
            columns,
        )

    def resize(self, rows: int, columns: int) -> None:
        self._set_size(rows, columns)

    def hang_up(self) -> None:
        """Take the terminal away, as closing its window does. Nothing more is seen of it."""
        if not self._hung_up:
            self._hung_up = True
            if self._master in self._selector.get_map():
                self._selector.unregister(self._master)
            os.close(self._master)

    def close_input(self) -> None:
        raise NotImplementedError("a terminal's input ends by Send(CTRL_D)")

    def close_output(self) -> None:
        raise NotImplementedError("a terminal's output closes by hang_up()")

    @property
    def _ended(self) -> bool:
        return self._exited and (self._hung_up or self._drained)

    def _on_exit(self, events: int) -> None:
        super()._on_exit(events)
        if not self._hung_up:
            self._watch(self._slave, selectors.EVENT_WRITE, lambda _: self._mark_end())

    def _mark_end(self) -> None:
        """There is room on the terminal: what a flood left unread may have filled it."""
        del self._unmarked[: os.write(self._slave, self._unmarked)]
        if not self._unmarked:
            self._selector.unregister(self._slave)

    def _on_master(self, events: int) -> None:
        if events & selectors.EVENT_READ:
            self._read()
        if events & selectors.EVENT_WRITE:
            self._send_more()

    def _read(self) -> None:
        said = self._said["stdout"]
        start = max(0, len(said) - len(END_MARK))
        said += os.read(self._master, CHUNK_BYTES)
        end = said.find(END_MARK, start) if self._exited else -1
        if end >= 0:
            del said[end:]
            self._drained = True
            self._selector.unregister(self._master)

    def _send_more(self) -> None:
        if self._hung_up or self._drained:
            self._unsent.clear()
            return
        try:
            while self._unsent:
                del self._unsent[: os.write(self._master, self._unsent)]
        except BlockingIOError:
            pass
        both = selectors.EVENT_READ | selectors.EVENT_WRITE
        self._selector.modify(
            self._master, both if self._unsent else selectors.EVENT_READ, self._on_master
        )

    def _set_size(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))
