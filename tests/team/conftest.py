"""All here makes networks, so all of it needs root and a kernel that lets it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.team.team import Team, a_team, unavailable
from updraft.runner.agent.owners import can_isolate

ALICE, BOB, CARETAKER = 312_345, 312_346, 312_347
"""Accounts of the users' own machines, and of a runner that is not root; nobody has them."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = [item for item in items if Path(__file__).parent in item.path.parents]
    if "slow" not in config.option.markexpr:
        # They repeat at length what others here try in short: only for who asks (`make soak`).
        slow = {item for item in here if "slow" in item.keywords}
        items[:] = [item for item in items if item not in slow]
        config.hook.pytest_deselected(items=list(slow))
    why = unavailable() if here else None
    for item in here:
        item.add_marker(pytest.mark.root)
        item.add_marker(pytest.mark.network)
        if why is not None:
            item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture(scope="module")
def team() -> Iterator[Team]:
    """Two shared runners, one of them behind NAT in a pool of its own, and one for Alice alone."""
    if (why := can_isolate()) is not None:
        pytest.skip(why)
    with a_team() as made:
        add_people(made)
        add_runners(made)
        made.wait_ready()
        yield made


def add_runners(team: Team) -> None:
    """Let the three runners join."""
    network = team.network
    team.runner(network.host("shared"))
    team.runner(network.host("hidden", nat=True), pool="other")
    team.runner(network.host("alices"), uid=CARETAKER, serves="alice")


def add_people(team: Team) -> None:
    """Let the users sit down, each at a machine of their own: one as root there, one not."""
    team.person("alice", ALICE, team.network.host("desk-alice"))
    team.person("bob", BOB, team.network.host("desk-bob"))
