"""P1, P2 and P3 under kill -9: nothing acknowledged is lost, started twice, or told wrongly."""

import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.chaos.program import exit_code_of, output_of
from updraft import faults
from updraft.testing.instance import Instance, instance, wait_for

JOBS = 300
KILLS = 20
PROGRAM = Path(__file__).with_name("program.py")


@pytest.fixture
def chaos_instance(tmp_path: Path) -> Iterator[Instance]:
    with instance(tmp_path / "home") as made:
        yield made


STARTED = b"updraft: started a server for you on this machine; it ends by itself when idle\n"


class Ran:
    """What a client saw of one job."""

    def __init__(self, number: int, result: subprocess.CompletedProcess[bytes]) -> None:
        self.number = number
        self.stdout = result.stdout
        self.stderr = result.stderr
        self.code = result.returncode


def attached(own: Instance, folder: Path, number: int) -> Ran:
    """Run a job with a client that stays: its own output is what is checked."""
    program = (sys.executable, "-S", str(PROGRAM), str(folder), str(number))
    return Ran(number, own.run("urun", "-q", "-I", *program, timeout=150))


def detached(own: Instance, folder: Path, number: int) -> Ran:
    """Submit a job, wait for its end, and read its stored output."""
    program = (sys.executable, "-S", str(PROGRAM), str(folder), str(number))
    submitted = own.run("ubatch", *program, timeout=150)
    assert submitted.returncode == 0, submitted.stderr
    job = submitted.stdout.decode().strip()
    waited = own.run("updraft", "job", "wait", job, timeout=150)
    stdout = own.run("updraft", "logs", job, "--stdout", timeout=150).stdout
    stderr = own.run("updraft", "logs", job, "--stderr", timeout=150).stderr
    # Said by a client that came when server and agent had just been killed.
    stderr = stderr.removeprefix(STARTED)
    return Ran(number, subprocess.CompletedProcess([], waited.returncode, stdout, stderr))


@pytest.mark.chaos
@pytest.mark.timeout(300)
def test_no_kill_loses_repeats_or_reorders_anything(
    chaos_instance: Instance, tmp_path: Path, seed: int
) -> None:
    own = chaos_instance
    dice = random.Random(seed)
    folder = tmp_path / "lines"
    folder.mkdir()
    assert own.run("urun", "true").returncode == 0
    over = threading.Event()
    killed: list[str] = []

    def kill_at_random() -> None:
        points = list(faults.POINTS)
        dice.shuffle(points)
        while not over.is_set() and (len(killed) < KILLS or points):
            over.wait(dice.uniform(0.1, 0.5))
            if points and len(killed) % 3 == 0:
                point = points.pop()
                own.arm(point)
                wait_for(f"{point} is reached", lambda p=point: over.is_set() or own.reached(p))
            roles = dice.choice([("server",), ("agent",), ("server", "agent")])
            if sum(own.kill(role) for role in roles):
                killed.append("+".join(roles))

    killer = threading.Thread(target=kill_at_random, name="killer")
    killer.start()
    try:
        with ThreadPoolExecutor(8) as clients:
            runs = [
                clients.submit(attached if dice.random() < 0.85 else detached, own, folder, number)
                for number in range(JOBS)
            ]
            results = [run.result() for run in runs]
    finally:
        over.set()
        killer.join()

    for point in faults.POINTS:
        assert own.reached(point), f"crash point {point} was not reached"
    assert len(killed) >= KILLS, f"only {len(killed)} kills before all jobs had ended"
    for ran in results:
        about = f"job {ran.number}: {ran.stderr[-300:]!r}"
        assert ran.code == exit_code_of(ran.number), about
        assert ran.stdout == output_of(ran.number, "stdout"), about
        assert ran.stderr == output_of(ran.number, "stderr"), about
        lines = (folder / str(ran.number)).read_text().splitlines()
        assert len(lines) == len(set(lines)) == 1, f"job {ran.number} ran as {lines}"
