"""Named crash points: where a test lets a process kill itself, to prove that nothing is lost.

A point is armed by a file of its name in the folder ``UPDRAFT_FAULTS``; reaching it takes the file
away (so that it fires once, in one process) and kills the process as ``kill -9`` does.  Without
that variable ``reached`` does nothing.
"""

from __future__ import annotations

import os
import signal

from updraft import settings

POINTS = ("insert-ack", "grant-spawn", "spawn-report", "exit-log", "log-terminal")
"""Between the durable insert and its acknowledgement; between the server's grant and the keeper's
spawn; between the spawn and its report; between a task's exit and its output's end being stored;
between that and the terminal state."""

_FOLDER = settings.faults_folder()


def reached(point: str) -> None:
    """Die here, if ``point`` is armed."""
    if _FOLDER is None:
        return
    try:
        os.rename(os.path.join(_FOLDER, point), os.path.join(_FOLDER, point + ".reached"))
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.SIGKILL)
