"""Instances for the tests of how Updraft starts, is broken, comes back and ends."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from updraft.testing.instance import Instance, instance


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Instance]:
    """A fresh instance of this test's own; nothing runs yet."""
    with instance(tmp_path / "home") as made:
        yield made


@pytest.fixture
def running(own: Instance) -> Instance:
    """A fresh instance whose server and runner run."""
    result = own.run("urun", "-q", "true")
    assert result.returncode == 0, result.stderr
    return own


@pytest.fixture
def make_instance(tmp_path: Path) -> Iterator[Callable[..., Instance]]:
    """Make instances in folders of the test's choice; all are stopped at its end."""
    with ExitStack() as stack:

        def make(home: Path, commands: Path | None = None) -> Instance:
            return stack.enter_context(instance(home, commands))

        yield make


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """One running instance for tests that are to change nothing in it."""
    with instance(tmp_path_factory.mktemp("shared") / "home") as made:
        result = made.run("urun", "-q", "true")
        assert result.returncode == 0, result.stderr
        yield made
