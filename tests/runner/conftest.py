"""A keeper for each test."""

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runner.bare_agent import BareAgent
from tests.runner.keeper_process import KeeperProcess
from tests.runner.users import ALICE, owner
from updraft.runner.agent.owners import can_isolate

ISOLATED_TOO = ("test_keeper_attempts", "test_keeper_endings", "test_keeper_streams")
"""What holds for a task holds for an isolated one: these run a second time."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "keeper" in metafunc.fixturenames and metafunc.module.__name__.endswith(ISOLATED_TOO):
        isolated = pytest.param("isolated", marks=pytest.mark.root)
        metafunc.parametrize("keeper", ["plain", isolated], indirect=True)


@pytest.fixture(scope="session")
def isolating() -> None:
    """Skip where tasks cannot be isolated, and say why."""
    why = can_isolate()
    if why is not None:
        pytest.skip(why)


@pytest.fixture
def keeper(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[KeeperProcess]:
    """A keeper that must not crash, and must leave nothing behind."""
    isolation = None
    if getattr(request, "param", "plain") == "isolated":
        if os.geteuid() == 0:
            request.getfixturevalue("isolating")
        isolation = owner(ALICE, tmp_path)
    keeper = KeeperProcess(tmp_path / "runner", isolation=isolation)
    try:
        yield keeper
    finally:
        keeper.end()


@pytest.fixture
def agent(keeper: KeeperProcess) -> BareAgent:
    """The keeper's agent."""
    return keeper.connect()


@pytest.fixture(scope="module")
def open_folder() -> Iterator[Path]:
    """A folder that everybody may enter and that is not in /tmp: nothing but covers hides it."""
    folder = Path(tempfile.mkdtemp(prefix="updraft-test-", dir="/var/lib"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def gpu() -> Iterator[Path]:
    """A device that everybody may open, named as a GPU is."""
    path = Path(f"/dev/nvidia{os.getpid()}")
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))
    path.chmod(0o666)
    yield path
    path.unlink()
