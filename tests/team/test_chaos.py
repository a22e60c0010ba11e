"""P1, P2 and P3 between machines: with what is killed, stopped or cut off, nothing is lost,
started twice, or told wrongly.
"""

import random
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.chaos import program
from tests.chaos.program import exit_code_of, output_of
from tests.network.link import Direction
from tests.team.conftest import ALICE, BOB
from tests.team.team import FAR, PYTHON, Person, Team, TeamRunner, a_team
from updraft.runner.agent.owners import can_isolate

LONGEST_CUT_SECONDS = 8.0
LONGEST_STOP_SECONDS = 3.0
PAUSES_SECONDS = {"kills": (2.0, 6.0), "breaks": (1.0, 4.0)}
"""Far away it takes a second to say hello: with a kill each second nobody would get anywhere."""
PATIENCE_SECONDS = 200.0
CLIENTS = 12
WAYS: tuple[Direction, ...] = ("both", "up", "down")


@pytest.fixture
def far_team(seed: int) -> Iterator[Team]:
    """Runners and users far away and near, with links that may change."""
    if (why := can_isolate()) is not None:
        pytest.skip(why)
    with a_team(seed) as team:
        network = team.network
        team.runner(network.host("far", FAR, nat=True))
        team.runner(network.host("near", emulated=True))
        team.person("alice", ALICE, network.host("desk-alice", emulated=True))
        team.person("bob", BOB, network.host("desk-bob", FAR))
        team.wait_ready()
        yield team


class Ran:
    """What a client saw of one job."""

    def __init__(self, number: int, result: subprocess.CompletedProcess[bytes]) -> None:
        self.number = number
        self.stdout = result.stdout
        self.stderr = result.stderr
        self.code = result.returncode


class Jobs:
    """The jobs' program and what it writes to, where tasks of all users reach it."""

    def __init__(self, folder: Path) -> None:
        self.lines = folder / "lines"
        self.lines.mkdir()
        self.lines.chmod(0o1777)
        shutil.copy(program.__file__, folder / "program.py")
        self._program = folder / "program.py"
        self._program.chmod(0o644)

    def attached(self, person: Person, number: int) -> Ran:
        """Run a job with a client that stays: its own output is what is checked."""
        return Ran(number, patiently(person, "urun", "-q", "-I", *self._argv(number)))

    def detached(self, person: Person, number: int) -> Ran:
        """Submit a job, wait for its end, and read its stored output."""
        submitted = patiently(person, "ubatch", *self._argv(number))
        assert submitted.returncode == 0, submitted.stderr
        job = submitted.stdout.decode().strip()
        waited = patiently(person, "updraft", "job", "wait", job)
        stdout = patiently(person, "updraft", "logs", job, "--stdout").stdout
        result = patiently(person, "updraft", "logs", job, "--stderr")
        told = subprocess.CompletedProcess([], waited.returncode, stdout, result.stderr)
        return Ran(number, told)

    def _argv(self, number: int) -> list[str]:
        return [PYTHON, "-S", str(self._program), str(self.lines), str(number)]


def patiently(person: Person, *command: str) -> subprocess.CompletedProcess[bytes]:
    """Run a command; one that did not reach the server did nothing, and is run again."""
    while True:
        done = person.run(*command, timeout=PATIENCE_SECONDS)
        if done.returncode == 0 or b"cannot reach https://" not in done.stderr:
            return done


class Weather:
    """Kills, stops and cuts at random until told to end; two at a time, each by its own dice."""

    def __init__(self, team: Team, seed: int) -> None:
        self.happened: list[str] = []
        self._team = team
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._go_on, args=(random.Random(f"{seed} {n}"), n), name=n)
            for n in ("kills", "breaks")
        ]

    def __enter__(self) -> "Weather":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _go_on(self, dice: random.Random, what: str) -> None:
        deeds: dict[str, list[Callable[[random.Random], str]]] = {
            "kills": [self._kill_server, self._kill_agent, self._kill_agent],
            "breaks": [self._cut, self._cut, self._stop],
        }
        while not self._over.is_set():
            self._over.wait(dice.uniform(*PAUSES_SECONDS[what]))
            self.happened.append(dice.choice(deeds[what])(dice))

    def _runner(self, dice: random.Random) -> TeamRunner:
        return dice.choice(list(self._team.runners.values()))

    def _kill_server(self, _: random.Random) -> str:
        self._team.kill_server()
        self._team.start_server()
        return "killed server"

    def _kill_agent(self, dice: random.Random) -> str:
        runner = self._runner(dice)
        runner.signal("agent", signal.SIGKILL)
        return f"killed agent of {runner.name}"

    def _cut(self, dice: random.Random) -> str:
        host = dice.choice(list(self._team.network))
        way = dice.choice(WAYS)
        host.link.cut(way)
        self._over.wait(dice.uniform(0.5, LONGEST_CUT_SECONDS))
        host.link.heal()
        return f"cut {way} of {host.name}"

    def _stop(self, dice: random.Random) -> str:
        runner, role = self._runner(dice), dice.choice(["agent", "keeper"])
        stopped = runner.processes(role)
        for pid in stopped:
            runner.signal_one(pid, signal.SIGSTOP)
        self._over.wait(dice.uniform(0.2, LONGEST_STOP_SECONDS))
        for pid in stopped:
            runner.signal_one(pid, signal.SIGCONT)
        return f"stopped {role} of {runner.name}"


@pytest.mark.chaos
@pytest.mark.parametrize(
    "jobs",
    [
        pytest.param(60, marks=[pytest.mark.slow, pytest.mark.timeout(300)]),
        pytest.param(300, marks=[pytest.mark.slow, pytest.mark.timeout(1500)]),
    ],
)
def test_no_break_loses_repeats_or_reorders_anything(far_team: Team, seed: int, jobs: int) -> None:
    dice = random.Random(seed)
    work = Jobs(far_team.folder)
    people = list(far_team.people.values())
    with Weather(far_team, seed) as weather, ThreadPoolExecutor(CLIENTS) as clients:
        runs = [
            clients.submit(
                work.attached if dice.random() < 0.85 else work.detached,
                dice.choice(people),
                number,
            )
            for number in range(jobs)
        ]
        results = [run.result() for run in runs]
    assert len(weather.happened) > 3, weather.happened
    wrong = []
    for ran in results:
        trace = work.lines / str(ran.number)
        lines = trace.read_text().splitlines() if trace.exists() else []
        seen = {
            "code": ran.code == exit_code_of(ran.number),
            "stdout": ran.stdout == output_of(ran.number, "stdout"),
            "stderr": ran.stderr == output_of(ran.number, "stderr"),
            "lines": lines == ["attempt 1"],
        }
        if bad := [name for name, good in seen.items() if not good]:
            wrong.append((ran.number, bad, ran.code, ran.stderr[-300:], lines))
    assert not wrong, (wrong, weather.happened)
