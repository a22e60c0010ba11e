"""Become a command as an awkward starter would: ``starter.py SETTINGS COMMAND…``.

``SETTINGS`` is JSON: ``blocked`` and ``ignored`` signals, ``umask``, ``nice``, soft ``limits`` by
name, whether to keep to ``one_cpu``, ``idle`` (its oom score).
"""

import json
import os
import resource
import signal
import sys
from typing import Any


def main(settings: dict[str, Any], command: list[str]) -> None:
    for number in settings.get("ignored", ()):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, settings.get("blocked", ()))
    os.umask(settings.get("umask", 0o022))
    os.nice(settings.get("nice", 0))
    for name, soft in settings.get("limits", {}).items():
        number = getattr(resource, f"RLIMIT_{name}")
        resource.setrlimit(number, (soft, resource.getrlimit(number)[1]))
    if settings.get("one_cpu"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    os.execv(command[0], command)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), sys.argv[2:])
