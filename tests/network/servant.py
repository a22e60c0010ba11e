"""A process of the network's own, asked over a packet socket and ended by hanging up."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

SECONDS = 30.0
"""Far more than any answer takes on a busy machine."""


class NetworkError(Exception):
    """The network could not be made, or could not do what was asked."""


class Servant:
    """A script of this package, run with the interpreter that runs the tests."""

    def __init__(self, script: str, arguments: Sequence[str], pass_fds: Sequence[int] = ()) -> None:
        self._name = script
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(SECONDS)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(Path(__file__).with_name(script)), *arguments],
                stdin=theirs.fileno(),
                pass_fds=pass_fds,
                # A Ctrl-C is for the tests; what they need to end in order lives on until then.
                start_new_session=True,
            )
        self.pid = self._process.pid

    def ask(self, request: object) -> tuple[object, list[int]]:
        """Send a request and wait for its answer: a value, and descriptors."""
        try:
            self._socket.send(json.dumps(request).encode())
            message, fds, _, _ = socket.recv_fds(self._socket, 65536, 4)
        except OSError as error:
            raise NetworkError(f"{self._name} does not answer: {error}") from error
        if not message:
            raise NetworkError(f"{self._name} has ended (status {self._process.wait(SECONDS)})")
        answer = json.loads(message)
        if "error" in answer:
            for fd in fds:
                os.close(fd)
            raise NetworkError(f"{self._name}: {answer['error']}")
        return answer["value"], fds

    def close(self) -> None:
        """Hang up, and wait until the process has ended."""
        # Closing is not enough where a fork of this process has the socket too.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        try:
            self._process.wait(SECONDS)
        except subprocess.TimeoutExpired:  # it is stopped, or hangs
            self._process.kill()
            self._process.wait()
