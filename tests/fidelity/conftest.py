"""Where fidelity programs run, and what is put in front of them."""

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .trial import Stage

# A prefix to try the suite itself with, which must change nothing at all: FIDELITY_PREFIX=env
OVERRIDE = "FIDELITY_PREFIX"


@pytest.fixture(scope="session")
def base_env(tmp_path_factory: pytest.TempPathFactory) -> dict[bytes, bytes]:
    """The whole environment of every program: nothing of the runner's own is in it."""
    path = os.pathsep.join([str(Path(sys.executable).parent), "/usr/local/bin", "/usr/bin", "/bin"])
    return {
        b"PATH": os.fsencode(path),
        b"LANG": b"C.UTF-8",
        b"TERM": b"xterm",
        b"UPDRAFT_HOME": os.fsencode(tmp_path_factory.mktemp("updraft-home")),
    }


@pytest.fixture(scope="session")
def urun_prefix(base_env: dict[bytes, bytes]) -> Iterator[list[str]]:
    """What to put before a command, to run it through an Updraft instance of this session's own."""
    if override := os.environ.get(OVERRIDE):
        yield shlex.split(override)
        return
    urun, updraft = (Path(sys.executable).with_name(name) for name in ("urun", "updraft"))
    if not urun.is_file():
        pytest.fail(f"there is no {urun}: install Updraft in the environment that runs the tests")
    # The first call starts the instance and says so on stderr, which is for none of the programs.
    _succeed([str(urun), "true"], base_env)
    yield [str(urun)]
    _succeed([str(updraft), "stop", "--cancel"], base_env)


@pytest.fixture
def through_urun(urun_prefix: list[str]) -> list[str]:
    """The same prefix, for tests of what `urun` does that no bare command does."""
    if OVERRIDE in os.environ:
        pytest.skip(f"about urun itself, and {OVERRIDE} puts something else in its place")
    return urun_prefix


@pytest.fixture
def stage(tmp_path: Path, base_env: dict[bytes, bytes]) -> Stage:
    return Stage(tmp_path, base_env)


def _succeed(argv: list[str], env: dict[bytes, bytes]) -> None:
    done = subprocess.run(
        argv, env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False
    )
    if done.returncode != 0:
        pytest.fail(f"{argv} exited with {done.returncode}: {done.stderr!r}")
