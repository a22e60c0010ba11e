"""A keeper for each test."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runner.bare_agent import BareAgent
from tests.runner.keeper_process import KeeperProcess, owner
from updraft.runner.agent.owners import can_isolate

OWNER = 312_345
"""A user id that nobody has."""

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
        isolation = owner(OWNER, tmp_path)
    keeper = KeeperProcess(tmp_path / "runner", isolation=isolation)
    try:
        yield keeper
    finally:
        keeper.end()


@pytest.fixture
def agent(keeper: KeeperProcess) -> BareAgent:
    """The keeper's agent."""
    return keeper.connect()
