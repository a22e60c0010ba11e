"""Start a keeper: ``python -m updraft.runner.keeper --folder DIR -- AGENT-COMMAND…``."""

from __future__ import annotations

import fcntl
import os
import sys

from updraft.runner.keeper import processes
from updraft.runner.keeper.keeper import Keeper
from updraft.wire.sockets import listen_unix


def main(arguments: list[str]) -> int:
    """Run the one keeper of a runner folder; 0 also when there is one already."""
    if len(arguments) < 4 or arguments[0] != "--folder" or arguments[2] != "--":
        sys.stderr.write("usage: python -m updraft.runner.keeper --folder DIR -- AGENT…\n")
        return 2
    folder = arguments[1]
    os.umask(0o077)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    # Held until this process dies; leaders close their copy.
    lock = os.open(
        os.path.join(folder, "keeper.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
    )
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return 0
    processes.set_name("updraft-keeper")
    listener = listen_unix(os.path.join(folder, "keeper.sock"))
    Keeper(listener, folder, arguments[3:]).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
