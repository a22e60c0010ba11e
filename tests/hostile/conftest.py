"""A team's server for each module of attacks."""

from collections.abc import Iterator

import pytest

from tests.hostile.team import Team, team


@pytest.fixture(scope="module")
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Team]:
    """A team's server, with the module's ``SETTINGS``; the same process serves to the end."""
    settings = getattr(request.module, "SETTINGS", "")
    with team(tmp_path_factory.mktemp("team"), settings) as made:
        yield made
        assert made.good() < 5
