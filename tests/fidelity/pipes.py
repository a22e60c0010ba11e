"""Run a command on three pipes, with no terminal in sight."""

import os
import selectors

from .conversation import CHUNK_BYTES, Argv, Conversation, Setting, Stream, launch


class Pipes(Conversation):
    """A command whose standard input, output and error are pipes, each read apart."""

    def __init__(self, argv: Argv, setting: Setting) -> None:
        their_in, self._in = os.pipe()
        self._out, their_out = os.pipe()
        self._err, their_err = os.pipe()
        process = launch(argv, setting, "pipes", (their_in, their_out, their_err))
        for fd in (their_in, their_out, their_err):
            os.close(fd)
        super().__init__(process, setting)
        self._open = {self._in, self._out, self._err}
        self._resources.callback(self._close, self._in, self._out, self._err)
        self._input_ends = False
        for fd in self._open:
            os.set_blocking(fd, False)
        self._watch(self._out, selectors.EVENT_READ, lambda _: self._read(self._out, "stdout"))
        self._watch(self._err, selectors.EVENT_READ, lambda _: self._read(self._err, "stderr"))

    def close_input(self) -> None:
        self._input_ends = True
        self._send_more()

    def close_output(self) -> None:
        self._close(self._out)
        del self._said["stdout"][self._found_to["stdout"] :]

    def resize(self, rows: int, columns: int) -> None:
        raise NotImplementedError("pipes have no size")

    @property
    def _ended(self) -> bool:
        return self._exited and not self._open & {self._out, self._err}

    def _read(self, fd: int, stream: Stream) -> None:
        data = os.read(fd, CHUNK_BYTES)
        self._said[stream] += data
        if not data:
            self._close(fd)

    def _send_more(self) -> None:
        if self._in not in self._open:
            self._unsent.clear()
            return
        try:
            while self._unsent:
                del self._unsent[: os.write(self._in, self._unsent[:CHUNK_BYTES])]
        except BlockingIOError:
            if self._in not in self._selector.get_map():
                self._watch(self._in, selectors.EVENT_WRITE, lambda _: self._send_more())
            return
        except BrokenPipeError:  # nobody reads it any more, as a writer of a bare pipe finds out
            self._unsent.clear()
            self._input_ends = True
        if self._input_ends:
            self._close(self._in)
        elif self._in in self._selector.get_map():
            self._selector.unregister(self._in)

    def _close(self, *fds: int) -> None:
        for fd in self._open.intersection(fds):
            if fd in self._selector.get_map():
                self._selector.unregister(fd)
            os.close(fd)
            self._open.discard(fd)
