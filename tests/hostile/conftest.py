"""A team's server for each module of attacks."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile.team import Team, team


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave what takes long to who asks for it (``make soak``)."""
    if "slow" not in config.option.markexpr:
        here = [item for item in items if Path(__file__).parent in item.path.parents]
        slow = {item for item in here if "slow" in item.keywords}
        items[:] = [item for item in items if item not in slow]
        config.hook.pytest_deselected(items=list(slow))


@pytest.fixture(scope="module")
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Team]:
    """A team's server, with the module's ``SETTINGS``; the same process serves to the end."""
    settings = getattr(request.module, "SETTINGS", "")
    with team(tmp_path_factory.mktemp("team"), settings) as made:
        yield made
        assert made.good() < 5
