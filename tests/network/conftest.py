"""All here makes networks, so all of it needs root and a kernel that lets it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.network import Network


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.root)
            item.add_marker(pytest.mark.network)


@pytest.fixture
def network() -> Iterator[Network]:
    with Network(seed=7) as made:
        yield made
