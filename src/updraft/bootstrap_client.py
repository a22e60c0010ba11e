"""A client's way to its server: the short path when it is up, the long one when it is not.

On the launch path: what the long path needs is imported only there.
"""

from __future__ import annotations

import os

from updraft import errors
from updraft.wire.sockets import connect_unix, peer_uid

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from updraft.settings import Folders

_START_IT_OURSELVES_AFTER_SECONDS = 1.5


def connect(folders: Folders, say: Callable[[str], None] | None = None) -> socket.socket:
    """Return a connection to this user's server, started if there is none."""
    try:
        return _connect(folders)
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
        from updraft import bootstrap  # noqa: PLC0415 - only when there is no server

        return bootstrap.ensure_server(folders, say)
    except PermissionError as error:
        raise errors.NotAllowed(
            f"{folders.state} is not yours to use; set HOME or UPDRAFT_HOME to a folder of your own"
        ) from error
    except OSError as error:
        from updraft import bootstrap  # noqa: PLC0415 - only when it cannot work

        raise bootstrap.unusable(folders.state, error) from error


def reconnect(folders: Folders, waited_seconds: float) -> socket.socket:
    """Return a connection after a break; start the server only if nobody else does."""
    if waited_seconds < _START_IT_OURSELVES_AFTER_SECONDS or os.path.exists(folders.stopped):
        return _connect(folders)
    return connect(folders)


def _connect(folders: Folders) -> socket.socket:
    """Connect, and refuse a server that runs as somebody else: it would see all that we send."""
    peer = connect_unix(folders.socket)
    uid = peer_uid(peer)
    if uid != os.geteuid():
        peer.close()
        raise errors.NotAllowed(
            f"the server at {folders.socket} runs as user {uid}, and you are user {os.geteuid()}; "
            "set HOME or UPDRAFT_HOME to a folder of your own"
        )
    return peer
