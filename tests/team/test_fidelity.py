"""The fidelity table through a team's server: the programs run on another machine.

The runner serves the one user who asks, and is of the same account, so that a task can reach and
change the files of the program that it stands for.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fidelity.program import Program
from tests.fidelity.programs import PROGRAMS
from tests.fidelity.trial import Outcome, Stage, differences
from tests.team.team import Team, a_team

SAMPLE = 25
"""So many of the table run each time, spread over it; all of them where `slow` is asked for."""
LOCAL = ("pipes-environment-of-nothing-but-where-urun-finds-its-server",)
"""These tell `urun` nothing but where the server on its own machine is."""


@pytest.fixture(scope="module")
def remote() -> Iterator[Team]:
    """One runner, for Alice, who is root on both machines."""
    with a_team() as team:
        team.person("alice", 0, team.network.host("desk"))
        team.runner(team.network.host("runner"), serves="alice")
        team.wait_ready()
        yield team


@pytest.fixture
def remote_stage(remote: Team, tmp_path: Path) -> Stage:
    """As the table's own, with the server that commands are for; bare programs see it too."""
    environment = {
        os.fsencode(name): os.fsencode(value)
        for name, value in remote.people["alice"].environment.items()
    }
    environment |= {b"TERM": b"xterm", b"LANG": b"C.UTF-8"}
    path = [str(remote.commands), "/usr/local/bin", "/usr/bin", "/bin"]
    environment[b"PATH"] = os.fsencode(os.pathsep.join(path))
    return Stage(tmp_path, environment)


def _chosen() -> list[object]:
    """All programs; those that are not of the sample are slow."""
    step = max(1, len(PROGRAMS) // SAMPLE)
    return [
        pytest.param(program, id=program.id, marks=[] if number % step == 0 else [pytest.mark.slow])
        for number, program in enumerate(PROGRAMS)
        if program.id not in LOCAL
    ]


@pytest.mark.parametrize("program", _chosen())
def test_a_program_does_the_same_on_another_machine(
    program: Program, remote: Team, remote_stage: Stage, request: pytest.FixtureRequest
) -> None:
    bare = remote_stage.run(program, [])
    if bare.unmet:
        pytest.fail(f"the table is wrong about the bare program: {bare.unmet}")
    if program.exception:
        request.applymarker(
            pytest.mark.xfail(reason=program.exception, strict=True, raises=AssertionError)
        )
    if found := differences(bare, _through(remote, remote_stage, program)):
        raise AssertionError("\n".join(found))


def _through(remote: Team, stage: Stage, program: Program) -> Outcome:
    host = remote.people["alice"].host
    return stage.run(program, [*_entering(host.namespaces["net"]), str(remote.commands / "urun")])


def _entering(net: str) -> list[str]:
    # The network only: what else a host has of its own is not about programs, and the directory
    # stays as it is. What is entered is the client's place; the program that follows is urun.
    return ["nsenter", f"--net={net}", "--"]
