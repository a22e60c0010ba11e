"""What stands before servers, or between one and its database: a balancer of TCP, by hand."""

import contextlib
import select
import socket
import threading

_CHUNK = 1 << 16


class Balancer:
    """Passes connections on to one port at a time; those to another are cut when it changes."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._lock = threading.Lock()
        self._to = 0
        self._flows = threading.Event()
        self._flows.set()
        self._open: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def point_at(self, port: int) -> None:
        """Send everybody there from now on."""
        with self._lock:
            self._to = port
            self._cut()

    def freeze(self) -> None:
        """Let nothing pass, in no direction, as where a cable was cut; nobody is told."""
        self._flows.clear()

    def thaw(self) -> None:
        """Let all pass that was held back."""
        self._flows.set()

    def _cut(self) -> None:
        for each in self._open:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self._listening.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._pass_on, args=(peer,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _pass_on(self, peer: socket.socket) -> None:
        with peer, contextlib.ExitStack() as stack:
            try:
                # Under the lock: a change finds each connection, or the connection the change.
                self._flows.wait()
                with self._lock:
                    server = stack.enter_context(socket.create_connection(("127.0.0.1", self._to)))
                    self._open |= {peer, server}
                stack.callback(self._forget, peer, server)
                while True:
                    found = select.select([peer, server], [], [])[0]
                    self._flows.wait()
                    for ready in found:
                        if not (data := ready.recv(_CHUNK)):
                            return
                        (server if ready is peer else peer).sendall(data)
            except OSError:
                return

    def _forget(self, *gone: socket.socket) -> None:
        with self._lock:
            self._open -= set(gone)

    def close(self) -> None:
        """End it, with all connections."""
        self.thaw()
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        with self._lock:
            self._cut()
        for thread in self._threads:
            thread.join()
