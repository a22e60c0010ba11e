"""Users whose tasks are isolated; nobody has their ids."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ALICE, BOB = 312_345, 312_346


def owner(uid: int, workspace: Path, **changes: Any) -> dict[str, Any]:
    """The isolation of a task of this user's; makes the workspace theirs."""
    workspace.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.chown(workspace, uid, uid)
    return {
        "uid": uid,
        "gid": uid,
        "groups": [],
        "user": b"user%d" % uid,
        "home": b"",
        "workspace": os.fsencode(workspace),
        "devices": [],
        "hidden": [],
        **changes,
    }


def python_for_others() -> str:
    """An interpreter that any user may run, in isolation too: it hides root's home, and /tmp."""
    own: tuple[str, ...] = (sys.executable,)
    if Path(sys.executable).is_relative_to("/tmp"):
        own = ()
    for path in (*own, "/usr/bin/python3", "/usr/local/bin/python3"):
        try:
            tried = subprocess.run([path, "-I", "-c", ""], user=ALICE, group=ALICE, check=False)
        except OSError:
            continue
        if tried.returncode == 0:
            return path
    return ""


PYTHON = [python_for_others() if os.geteuid() == 0 else sys.executable, "-I", "-S", "-c"]
