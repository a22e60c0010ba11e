"""Peers from PyPI, each in an environment of its own that is kept for the next run."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.install import REPOSITORY
from benchmarks.report import PeerUnavailable

PEERS = REPOSITORY / ".venv-peers"
_INSTALL_SECONDS = 600


@dataclass(frozen=True)
class Peer:
    """An interpreter that has a peer's package, and which version of it."""

    python: str
    version: str


def peer_from_pypi(package: str) -> Peer:
    """Install the package, unless it is there. Raises PeerUnavailable with pip's last line."""
    folder = PEERS / package
    if not (folder / "ready").exists():
        _install(package, folder)
    python = str(folder / "bin" / "python")
    code = f"from importlib.metadata import version; print(version({package!r}))"
    asked = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    if asked.returncode:
        raise PeerUnavailable(f"{package} in {folder} is broken; remove that folder")
    return Peer(python, asked.stdout.strip())


def _install(package: str, folder: Path) -> None:
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(exist_ok=True)
        for argv in (
            ["sh", str(REPOSITORY / "tools" / "make-venv"), str(folder)],
            [str(folder / "bin" / "python"), "-m", "pip", "--no-input", "install", "-qq", package],
        ):
            done = subprocess.run(
                argv,
                env={**os.environ, "PYTHON": sys.executable},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                timeout=_INSTALL_SECONDS,
            )
            if done.returncode:
                lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
                raise PeerUnavailable(f"not to be had from PyPI: {lines[-1] if lines else argv[0]}")
        (folder / "ready").touch()
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerUnavailable(f"could not be installed: {error}") from error
