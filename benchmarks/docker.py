"""Docker, where a daemon answers: a peer that `urun` is measured against. Nothing is pulled."""

import shutil
import subprocess
from dataclasses import dataclass

from benchmarks.report import PeerUnavailable
from benchmarks.scratch import plain_environment
from benchmarks.timing import Command

IMAGE = "busybox"
_ANSWER_SECONDS = 10


@dataclass(frozen=True)
class Docker:
    """A Docker whose daemon answers and has the image."""

    version: str
    program: str

    def run(self, *arguments: str) -> Command:
        shown = " ".join(["docker run --rm", IMAGE, *arguments])
        return Command(shown, (self.program, "run", "--rm", IMAGE, *arguments), plain_environment())


def local_docker() -> Docker:
    """Raises PeerUnavailable where there is no client, no daemon or no image."""
    program = shutil.which("docker")
    if program is None:
        raise PeerUnavailable("docker is not installed")
    version = _ask([program, "version", "--format", "{{.Server.Version}}"])
    if not version:
        raise PeerUnavailable("no Docker daemon answers")
    if not _ask([program, "image", "inspect", "--format", "{{.Id}}", IMAGE]):
        raise PeerUnavailable(f"Docker has no image {IMAGE} (docker pull {IMAGE})")
    return Docker(version, program)


def _ask(argv: list[str]) -> str:
    try:
        done = subprocess.run(
            argv,
            env=plain_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_ANSWER_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
