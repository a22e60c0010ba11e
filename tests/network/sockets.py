"""Plain sockets on hosts, to see what a network does to them."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

from tests.network import Host
from tests.waiting import SECONDS

PORT = 7000


def udp(host: Host) -> socket.socket:
    """A bound UDP socket with room for all that a test sends."""
    made = host.socket(socket.SOCK_DGRAM)
    made.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)  # SO_RCVBUFFORCE
    made.bind((host.address, PORT))
    made.settimeout(SECONDS)
    return made


def connected(client: Host, server: Host) -> tuple[socket.socket, socket.socket]:
    """Both ends of a TCP connection, the client's first."""
    with server.socket() as listening:
        listening.bind((server.address, 0))
        listening.listen()
        listening.settimeout(SECONDS)
        dialled = client.socket()
        dialled.settimeout(SECONDS)
        dialled.connect(listening.getsockname())
        accepted, _ = listening.accept()
    accepted.settimeout(SECONDS)
    for end in (dialled, accepted):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return dialled, accepted


def round_trip(near: socket.socket, far: socket.socket) -> float:
    """Seconds for a datagram there and its echo back."""
    began = time.monotonic()
    near.sendto(b"ping", far.getsockname())
    echo, sender = far.recvfrom(100)
    far.sendto(echo, sender)
    near.recv(100)
    return time.monotonic() - began


def send_numbered(sender: socket.socket, receiver: socket.socket, count: int) -> None:
    """Send datagrams that carry their number; all at once, so not more than a queue holds."""
    for number in range(count):
        sender.sendto(number.to_bytes(4, "big"), receiver.getsockname())


def received_numbers(sender: socket.socket, receiver: socket.socket) -> list[int]:
    """The numbers that have arrived, once all that were sent before this call would have."""
    sender.sendto(b"end", receiver.getsockname())
    numbers = []
    while (datagram := receiver.recv(100)) != b"end":
        numbers.append(int.from_bytes(datagram, "big"))
    return numbers


@contextlib.contextmanager
def pouring(into: socket.socket, data: bytes | None = None) -> Iterator[threading.Thread]:
    """Send in the background: the data, or zeros until the other end is closed."""

    def pour() -> None:
        with contextlib.suppress(ConnectionError):
            if data is not None:
                into.sendall(data)
                into.shutdown(socket.SHUT_WR)
            while data is None:
                into.sendall(bytes(65536))

    thread = threading.Thread(target=pour)
    thread.start()
    try:
        yield thread
    finally:
        thread.join(SECONDS)
