"""Unix sockets that no other user can reach and that may have long paths.

The kernel bounds a unix socket's path to about 108 bytes.  A longer one is reached through its open
folder (``/proc/self/fd/N/name``) on Linux, and through the working directory elsewhere.
"""

from __future__ import annotations

import os
from struct import Struct

from updraft.c_modules import socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket as standard
    from collections.abc import Callable

MAX_PATH_BYTES = 103  # the smallest bound of the systems we run on (macOS), with its final NUL
_UCRED = Struct("iII")


def connect_unix(path: str) -> socket.socket:
    """Return a connected stream socket.  Raises ``OSError`` as ``connect`` does.

    It is the C module's socket, which asyncio does not take: see ``as_standard``.
    """
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _with_short_path(path, peer.connect)
    except OSError:
        peer.close()
        raise
    return peer


def as_standard(peer: socket.socket) -> standard.socket:
    """Return the same connection as a ``socket.socket`` of the standard module."""
    import socket as standard  # noqa: PLC0415 - not on the launch path

    return standard.socket(fileno=peer.detach())


def listen_unix(path: str, backlog: int = 512) -> standard.socket:
    """Return a listening socket, born with mode 0600, in place of a stale one at ``path``.

    The caller holds the lock that says that nobody serves there.
    """
    if os.path.lexists(path):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    umask = os.umask(0o177)
    try:
        _with_short_path(path, listener.bind)
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(umask)
    listener.listen(backlog)
    return as_standard(listener)


def peer_uid(peer: socket.socket) -> int:
    """Return the user id of the process at the other end, as the kernel knows it."""
    if hasattr(socket, "SO_PEERCRED"):
        creds = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        return int(_UCRED.unpack(creds)[1])
    # LOCAL_PEERCRED of BSD and macOS: struct xucred {u_int version; uid_t uid; …}
    creds = peer.getsockopt(0, 1, 76)
    return int.from_bytes(creds[4:8], "little")


def peer_pid(peer: socket.socket) -> int | None:
    """Return the process that listened at the other end, None where the kernel cannot tell."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    creds = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    return int(_UCRED.unpack(creds)[0])


def _with_short_path(path: str, use: Callable[[str], None]) -> None:
    if len(os.fsencode(path)) <= MAX_PATH_BYTES:
        use(path)
        return
    folder, name = os.path.split(path)
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if os.path.isdir("/proc/self/fd"):
            use(f"/proc/self/fd/{fd}/{name}")
        else:
            here = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fchdir(fd)
                use(name)
            finally:
                os.fchdir(here)
                os.close(here)
    finally:
        os.close(fd)
