"""A keeper for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runner.bare_agent import BareAgent
from tests.runner.keeper_process import KeeperProcess


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[KeeperProcess]:
    """A keeper that must not crash, and must leave nothing behind."""
    keeper = KeeperProcess(tmp_path / "runner")
    try:
        yield keeper
    finally:
        keeper.end()


@pytest.fixture
def agent(keeper: KeeperProcess) -> BareAgent:
    """The keeper's agent."""
    return keeper.connect()
