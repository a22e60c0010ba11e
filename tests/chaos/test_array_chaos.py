"""P1 and P2 of arrays under kill -9 of everything: each task ends as its command did, and no
attempt starts twice."""

import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from updraft.testing.instance import Instance, instance, wait_for

TASKS = 3_000
KILLS = 15
FAILING = 7
KEEPER_KILLS = 2
"""As many as there are retries: a task that is lost each time still ends well."""

SCRIPT = """
echo $UPDRAFT_ATTEMPT >>"$1/$UPDRAFT_TASK_INDEX"
[ $((UPDRAFT_TASK_INDEX % 50)) -ne 3 ] || echo "task $UPDRAFT_TASK_INDEX"
exit $((UPDRAFT_TASK_INDEX % 7 == 5))
"""


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Instance]:
    with instance(tmp_path / "home") as made:
        yield made


def finished(folder: Path) -> int:
    return sum(1 for _ in folder.iterdir())


@pytest.mark.chaos
@pytest.mark.timeout(300)
def test_no_kill_loses_or_repeats_a_task_of_an_array(
    own: Instance, tmp_path: Path, seed: int
) -> None:
    dice = random.Random(seed)
    folder = tmp_path / "ran"
    folder.mkdir()
    command = ("sh", "-c", SCRIPT, "sh", str(folder))
    # Two retries: a task may be lost with each of the keepers that are killed.
    submitted = own.run("ubatch", "-N", str(TASKS), "--cpus", "0.25", "--retries", "2", *command)
    job = submitted.stdout.decode().strip()
    assert submitted.returncode == 0, submitted.stderr

    killed: Counter[str] = Counter()
    while sum(killed.values()) < KILLS and finished(folder) < TASKS * 3 // 4:
        before = finished(folder)
        roles = dice.choice([("server",), ("agent",), ("server", "agent"), ("keeper",)])
        if roles == ("keeper",) and killed["keeper"] >= KEEPER_KILLS:
            continue
        if sum(own.kill(role) for role in roles):
            killed["+".join(roles)] += 1
        # Somebody has to be left to start the others: with all three dead, only a client does.
        wait_for("all are back", lambda: all(map(own.processes, ("server", "agent", "keeper"))))
        more = dice.randint(1, 50)
        wait_for("it goes on", lambda least=before + more: finished(folder) >= least)
    waited = own.run("updraft", "job", "wait", job, timeout=200)
    assert sum(killed.values()) >= 4, killed

    shown = json.loads(own.run("updraft", "job", "show", "--json", job, timeout=60).stdout)
    expected = [index for index in range(TASKS) if index % FAILING == 5]
    assert waited.returncode == 1, waited.stderr
    assert shown["tasks"]["not_ok"] == len(expected), shown["tasks"]
    assert shown["tasks"]["ok"] == TASKS - len(expected)
    for index in range(TASKS):
        attempts = (folder / str(index)).read_text().split()
        assert len(attempts) == len(set(attempts)) >= 1, f"task {index} ran as {attempts}"
    logs = own.run("updraft", "logs", job, "--stdout", timeout=60).stdout.decode()
    told = Counter(logs.splitlines())
    for index in range(3, TASKS, 50):
        assert told[f"task {index}"] >= 1, f"the output of task {index} is lost"
