"""The main job, done by two users on three runners, over TCP and TLS."""

import dataclasses
import hashlib
import json
import os
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.fidelity.conversation import Setting
from tests.fidelity.terminal import Terminal
from tests.team.team import PYTHON, Person, Team, memory_of, wait_for_line
from tests.waiting import until

BIG_BYTES = 100_000_000
MOST_MEMORY_BYTES = 150_000_000


PLACES = [
    pytest.param(("alice", "main"), id="alice-main"),
    pytest.param(("bob", "other"), id="bob-other"),
    pytest.param(("alice", "other"), id="alice-other", marks=pytest.mark.slow),
    pytest.param(("bob", "main"), id="bob-main", marks=pytest.mark.slow),
]


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Who runs something, and where: `other` is the pool of a runner that cannot be dialled."""
    name, pool = request.param
    return name, pool


@pytest.fixture
def person(team: Team, place: tuple[str, str]) -> Person:
    return team.people[place[0]]


@pytest.fixture
def pool(place: tuple[str, str]) -> str:
    return place[1]


def submit(person: Person, *arguments: str) -> str:
    return person.said("ubatch", *arguments)


def test_a_command_has_its_input_its_outputs_and_its_exit_code(person: Person, pool: str) -> None:
    script = "cat; echo out; echo err >&2; exit 7"
    done = person.run("urun", "-P", pool, "sh", "-c", script, data=b"in\0\xff\n")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"in\0\xff\nout\n", b"err\n")


def test_a_signal_ends_the_command_and_is_in_the_exit_code(person: Person, pool: str) -> None:
    with person.popen("urun", "-P", pool, "sh", "-c", "echo ready; exec sleep 1000") as running:
        wait_for_line(running, b"ready\n")
        running.terminate()
        assert running.wait(20) == 128 + 15


def test_a_command_that_is_not_there_is_told_as_by_a_shell(person: Person, pool: str) -> None:
    assert person.run("urun", "-P", pool, "no-such-command").returncode == 127


def test_a_batch_job_runs_without_its_user_and_its_output_is_followed(
    person: Person, pool: str
) -> None:
    wait = "until [ -e $HOME/go ]; do sleep 0.05; done"
    script = f"echo begin; {wait}; echo end; exit 3"
    job = submit(person, "-P", pool, "--", "sh", "-c", f"HOME={person.home}; {script}")
    with person.popen("updraft", "logs", "-f", job) as following:
        wait_for_line(following, b"begin\n")
        (person.home / "go").touch()
        out, _ = following.communicate(timeout=20)
        assert out == b"end\n"
    (person.home / "go").unlink()
    assert person.run("updraft", "job", "wait", job).returncode == 3
    assert person.said("updraft", "logs", job) == "begin\nend"
    shown = json.loads(person.said("updraft", "job", "show", "--json", job))
    assert (shown["id"], shown["state"], shown["exit_code"]) == (job, "SUCCESS", 3)
    listed = json.loads(person.said("updraft", "job", "list", "--all", "--json"))
    assert job in json.dumps(listed)


def test_a_job_is_attached_to_and_something_runs_beside_it(person: Person, pool: str) -> None:
    job = submit(person, "-P", pool, "--", "sh", "-c", "pwd; while sleep 0.1; do echo; done")
    folder = until(lambda: person.said("updraft", "logs", job), "its first line")
    beside = person.run("updraft", "exec", job, "sh", "-c", "pwd; cat; exit 4", data=b"hi")
    assert (beside.returncode, beside.stdout) == (4, f"{folder}\nhi".encode())
    with person.popen("updraft", "attach", job) as attached:
        wait_for_line(attached, b"\n")
        assert person.run("updraft", "job", "cancel", job).returncode == 0
        assert attached.wait(20) == 143
    assert person.run("updraft", "job", "wait", job).returncode == 143


def test_a_time_limit_ends_a_command(person: Person, pool: str) -> None:
    done = person.run("urun", "-P", pool, "--time", "1s", "sleep", "1000")
    assert done.returncode == 124
    assert b"expired" in done.stderr


def test_a_shell_on_a_terminal(person: Person, pool: str) -> None:
    argv = person.argv("urun", "-P", pool, "bash", "--norc", "--noprofile", "-i")
    environment = {os.fsencode(k): os.fsencode(v) for k, v in person.environment.items()}
    environment |= {b"TERM": b"xterm", b"PS1": b"here> "}
    setting = Setting(person.home, environment, deadline_seconds=30)
    with Terminal(argv, setting, rows=33, columns=99, typed=b"") as terminal:
        terminal.expect(b"here> ")
        terminal.send(b"stty size; tty | cut -c1-5\n")
        terminal.expect(b"33 99\r\n/dev/")
        terminal.resize(44, 111)
        terminal.send(b"sh -c 'echo re\"\"ady; exec sleep 1000'\n")
        terminal.expect(b"ready\r\n")
        terminal.send(b"\x03")
        terminal.expect(b"here> ")
        terminal.send(b"stty size\n")
        terminal.expect(b"44 111\r\n")
        terminal.send(b"exit 9\n")
        terminal.finish()
        assert terminal.exit_code == 9
        assert terminal.state() == dataclasses.replace(terminal.before, rows=44, columns=111)


def test_each_user_is_somebody_else_on_a_shared_runner(team: Team) -> None:
    uids = {name: team.people[name].said("urun", "-P", "other", "id", "-u") for name in team.people}
    assert uids["alice"] != uids["bob"]
    assert not {"0", ""} & set(uids.values())


def test_a_runner_that_serves_one_user_takes_nobody_elses_tasks(team: Team) -> None:
    """Each fills the pool: who may, on two machines; the other on one."""
    for name, wanted in (("bob", {"shared"}), ("alice", {"shared", "alices"})):
        jobs = [
            submit(team.people[name], "--cpus", "1", "--", "sh", "-c", "hostname; exec sleep 1.5")
            for _ in range(2 * (os.cpu_count() or 1))
        ]
        with ThreadPoolExecutor(2) as asking:
            codes = list(
                asking.map(
                    lambda job, name=name: team.people[name].run("updraft", "job", "wait", job),
                    jobs,
                )
            )
        assert {done.returncode for done in codes} == {0}
        assert {team.people[name].said("updraft", "logs", job) for job in jobs} == wanted


def test_much_is_carried_both_ways_at_once_and_nobodys_memory_grows(
    team: Team, person: Person, pool: str
) -> None:
    assert team.server is not None
    block = hashlib.sha256(person.name.encode()).digest() * 2048  # 64 KiB
    count = BIG_BYTES // len(block)
    wanted = hashlib.sha256()
    with person.popen("urun", "-P", pool, "cat", stdin=subprocess.PIPE) as running:
        assert running.stdin is not None
        assert running.stdout is not None

        def write() -> None:
            assert running.stdin is not None
            for number in range(count):
                running.stdin.write(number.to_bytes(4) + block)
            running.stdin.close()

        writer = threading.Thread(target=write)
        writer.start()
        for number in range(count):
            wanted.update(number.to_bytes(4) + block)
        got, length = hashlib.sha256(), 0
        while data := running.stdout.read(1 << 20):
            got.update(data)
            length += len(data)
        writer.join()
        assert running.wait(20) == 0
    assert (length, got.digest()) == (count * (len(block) + 4), wanted.digest())
    agents = [pid for runner in team.runners.values() for pid in runner.processes("agent")]
    for pid in (team.server.pid, *agents):
        assert memory_of(pid) < MOST_MEMORY_BYTES


COUNTS = """
import sys
for count in range(1, 101):
    sys.stdout.buffer.write(bytes(1_000_000))
    sys.stdout.buffer.flush()
    with open(sys.argv[1], "a") as told:
        print(count, file=told)
"""


def test_a_slow_reader_holds_the_writer_back(team: Team, person: Person, pool: str) -> None:
    told = team.folder / f"counts-{person.name}-{pool}"
    told.touch()
    told.chmod(0o666)
    argv = ("urun", "-P", pool, PYTHON, "-c", COUNTS, str(told))
    with person.popen(*argv, bufsize=0) as running:
        assert running.stdout is not None
        until(told.read_text, "its first count")
        # As long as it is not held back there is another each few milliseconds.
        before = ""
        while before != (before := told.read_text()):
            time.sleep(1)
        assert len(before.splitlines()) < 50
        left = 100 * 1_000_000
        while left:
            read = running.stdout.read(1 << 20)
            assert read, f"{left} bytes were not written"
            left -= len(read)
        assert running.wait(20) == 0
    assert told.read_text().splitlines()[-1] == "100"
