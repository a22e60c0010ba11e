"""Start a keeper: ``python -m updraft.runner.keeper --folder DIR [OPTION…] -- AGENT…``.

``--no-cgroups``: tasks run without limits.  ``--shared``: it starts isolated tasks only.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time

from updraft.runner.keeper import processes
from updraft.runner.keeper.keeper import Keeper
from updraft.wire.sockets import listen_unix

_OPTIONS = ("--no-cgroups", "--shared")
_LOOKS = 4
_LOOK_SECONDS = 0.02


def main(arguments: list[str]) -> int:
    """Run the one keeper of a runner folder; 0 also when there is one already."""
    agent = arguments[2:]
    options: set[str] = set()
    while agent and agent[0] in _OPTIONS:
        options.add(agent.pop(0))
    if arguments[:1] != ["--folder"] or agent[:1] != ["--"] or not agent[1:]:
        known = "".join(f"[{option}] " for option in _OPTIONS)
        sys.stderr.write(f"usage: python -m updraft.runner.keeper --folder DIR {known}-- AGENT…\n")
        return 2
    folder = arguments[1]
    os.umask(0o077)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    # Held until this process dies; leaders close their copy.
    lock = os.open(
        os.path.join(folder, "keeper.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
    )
    if not _take(lock):
        return 0
    processes.set_name("updraft-keeper")
    listener = listen_unix(os.path.join(folder, "keeper.sock"))
    cgroups, shared = ("--no-cgroups" not in options), ("--shared" in options)
    keeper = Keeper(listener, folder, agent[1:], cgroups=cgroups, shared=shared)
    status = keeper.run()
    if keeper.again:
        # The same process goes on as another program, for whoever waits for its end.
        words = [sys.executable, "-I", "-m", "updraft.runner.keeper", *arguments]
        os.execv(words[0], words)
    return status


def _take(lock: int) -> bool:
    """Take the lock, unless a keeper holds it and not somebody who looks whether one does."""
    for _ in range(_LOOKS):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_LOOK_SECONDS)
        else:
            return True
    return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
