"""Jobs that submit jobs: they never wait for their own CPUs, and go with what submitted them."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from updraft.testing.instance import Instance, instance, wait_for

CPUS = os.cpu_count() or 1


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    with instance(tmp_path_factory.mktemp("nested")) as made:
        made.environment["PATH"] = f"{made.commands}:{os.environ['PATH']}"
        assert made.run("urun", "true").returncode == 0
        yield made


def jobs(own: Instance, *arguments: str) -> list[dict[str, object]]:
    listed = own.run("updraft", "job", "list", "--all", "--json", *arguments)
    found: list[dict[str, object]] = json.loads(listed.stdout)
    return found


def job(own: Instance, job_id: str) -> dict[str, object]:
    shown: dict[str, object] = json.loads(
        own.run("updraft", "job", "show", "--json", job_id).stdout
    )
    return shown


def submit(own: Instance, *arguments: str) -> str:
    done = own.run("ubatch", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode().strip()


def has_ended(own: Instance, job_id: str) -> bool:
    return job(own, job_id)["ok"] is not None


def test_a_full_machine_of_nested_calls_comes_to_its_end(own: Instance) -> None:
    """Every CPU is held by a job that waits for one that waits for one; all at the same time."""
    script = "urun sh -c 'urun sh -c \"urun echo deep\"'"
    started = [
        subprocess.Popen(
            own.command("urun", "--cpus", "1", "sh", "-c", script),
            env=own.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for _ in range(2 * CPUS)
    ]
    for each in started:
        out, err = each.communicate(timeout=60)
        assert (each.returncode, out) == (0, b"deep\n"), err


COUNT = """
import os, sys, time
folder = sys.argv[1]
mine = os.path.join(folder, "running", str(os.getpid()))
open(mine, "w").close()
os.write(1, b"%d\\n" % len(os.listdir(os.path.join(folder, "running"))))
deadline = time.monotonic() + 0.2
while time.monotonic() < deadline:
    time.sleep(0.01)
os.unlink(mine)
"""


def test_a_fan_out_runs_as_many_at_a_time_as_its_parent_has_room_for(
    own: Instance, tmp_path: Path
) -> None:
    (tmp_path / "running").mkdir()
    (tmp_path / "count.py").write_text(COUNT)
    call = f"urun {sys.executable} {tmp_path}/count.py {tmp_path}"
    script = "; ".join([f"{call} &"] * 8).replace("&;", "&") + " wait"
    done = own.run("urun", "--cpus", str(CPUS), "sh", "-c", script, timeout=60)
    counted = [int(line) for line in done.stdout.split()]
    assert len(counted) == 8, done.stderr
    assert max(counted) <= CPUS


def test_a_nested_call_runs_where_its_caller_is(own: Instance, tmp_path: Path) -> None:
    script = f"cd {tmp_path}; umask 027; urun sh -c 'pwd; umask; cat; exit 7'; echo $?"
    done = own.run("urun", "--cpus", str(CPUS), "sh", "-c", script, data=b"typed\n")
    assert done.stdout.decode().split() == [str(tmp_path), "0027", "typed", "7"], done.stderr


def test_a_nested_pipeline_shares_its_parents_cpus(own: Instance) -> None:
    script = "urun seq 100000 | urun cat | urun tail -n 1"
    done = own.run("urun", "--cpus", str(CPUS), "sh", "-c", script, timeout=60)
    assert done.stdout == b"100000\n", done.stderr


def test_nested_calls_of_a_pipelines_stages_end(own: Instance) -> None:
    stages = ["urun seq 1000", *["urun sh -c 'urun cat'"] * (CPUS + 1), "urun tail -n 1"]
    done = subprocess.run(
        ["sh", "-c", " | ".join(stages)],
        env=own.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == b"1000\n", done.stderr


def test_the_tasks_of_an_array_run_jobs_in_what_it_has(own: Instance) -> None:
    """Its crew holds all CPUs, and keeps them for its next tasks."""
    count = 3 * CPUS
    array = submit(own, "-N", str(count), "--", "sh", "-c", "urun -q sh -c 'urun -q echo deep'")
    assert own.run("updraft", "job", "wait", array, timeout=60).returncode == 0
    assert len(jobs(own, "--parent", array)) == job(own, array)["children"] == count


def test_a_call_that_would_wait_for_ever_is_refused(own: Instance) -> None:
    if CPUS < 2:
        pytest.skip("needs a machine of which a part can be held")
    done = own.run("urun", "sh", "-c", f"urun --cpus {CPUS} true")
    assert done.returncode == 125
    assert b"would wait for ever" in done.stderr


def test_what_a_job_submitted_is_shown_and_listed(own: Instance) -> None:
    done = own.run("urun", "sh", "-c", "echo $UPDRAFT_JOB_ID; ubatch true; urun true")
    parent, child = done.stdout.decode().split()
    wait_for("its end", lambda: has_ended(own, child))
    assert job(own, child)["parent"] == parent
    assert len(jobs(own, "--parent", parent)) == job(own, parent)["children"] == 2
    assert jobs(own, "--parent", child) == []
    text = own.run("updraft", "job", "show", parent).stdout
    assert b"2, all ended" in text
    assert parent.encode() in own.run("updraft", "job", "show", child).stdout
    secret = b"updraft_task_"
    assert secret not in own.run("updraft", "job", "show", "--json", parent).stdout
    assert secret not in (own.state / "server.log").read_bytes()
    assert own.run("updraft", "job", "list", "--parent", "nosuch").returncode == 1


def test_detached_children_outlive_a_parent_that_came_to_its_own_end(
    own: Instance, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    done = own.run("urun", "--cpus", "0", "sh", "-c", f"ubatch sh -c 'cat {gate}'; exit 3")
    assert done.returncode == 3
    child = done.stdout.decode().strip()
    assert not has_ended(own, child)
    gate.write_text("gone on\n")
    assert own.run("updraft", "job", "wait", child).returncode == 0


ENDS: dict[str, Callable[[Instance, str], object]] = {
    "cancelled": lambda own, parent: own.run("updraft", "job", "cancel", parent),
    "killed with its keeper": lambda own, _: own.kill("keeper"),
}


@pytest.mark.parametrize("how", ENDS)
def test_a_parent_that_does_not_come_to_its_own_end_takes_its_children_along(
    own: Instance, tmp_path: Path, how: str
) -> None:
    said = tmp_path / "said"
    child = tmp_path / "child.sh"
    child.write_text(f"ubatch --cpus 0 sleep 1000 >>{said}; exec sleep 1000")
    script = f"ubatch --cpus 0 sh {child} >>{said}; exec sleep 1000"
    parent = submit(own, "--cpus", "0", "--retries", "0", "--", "sh", "-c", script)
    wait_for("both children", lambda: said.exists() and len(said.read_text().split()) == 2)
    children = said.read_text().split()
    wait_for("them to run", lambda: all(job(own, c)["state"] == "RUNNING" for c in children))
    ENDS[how](own, parent)
    wait_for("the end of all", lambda: all(has_ended(own, each) for each in (parent, *children)))
    states = {str(job(own, each)["state"]) for each in children}
    assert states <= {"CANCELLED", "FAILURE"}


def test_a_time_limit_ends_the_children_too(own: Instance, tmp_path: Path) -> None:
    said = tmp_path / "said"
    script = f"ubatch --cpus 0 sleep 1000 >{said}; exec sleep 1000"
    parent = submit(own, "--cpus", "0", "--time", "2s", "--", "sh", "-c", script)
    assert own.run("updraft", "job", "wait", parent).returncode == 124
    child = said.read_text().strip()
    wait_for("the child's end", lambda: job(own, child)["state"] == "CANCELLED")


def test_a_child_waits_no_longer_when_its_server_was_restarted(
    own: Instance, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    script = f"urun cat {gate}; urun echo after"
    with subprocess.Popen(
        own.command("urun", "--cpus", str(CPUS), "sh", "-c", script),
        env=own.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
    ) as running:  # fmt: skip
        wait_for("the child", lambda: len(jobs(own, "--state", "RUNNING")) == 2)
        assert own.kill("server") == 1
        gate.write_text("before\n")
        out, _ = running.communicate(timeout=60)
    assert (running.returncode, out) == (0, b"before\nafter\n")


def test_another_instance_is_not_told_the_token(own: Instance, tmp_path: Path) -> None:
    """What ``UPDRAFT_HOME`` says within a task goes before the task's own server."""
    with instance(tmp_path / "other") as other:
        home = f"UPDRAFT_HOME={other.home}"
        done = own.run("urun", "sh", "-c", f"env {home} urun -q sh -c 'echo $UPDRAFT_HOME'")
        assert done.returncode == 0, done.stderr
        (only,) = jobs(other)
        assert only["parent"] is None


def test_a_token_of_an_ended_job_is_refused_in_one_clear_line(own: Instance) -> None:
    done = own.run("urun", "sh", "-c", "echo $UPDRAFT_URL $UPDRAFT_TOKEN")
    url, token = done.stdout.decode().split()
    before = dict(own.environment)
    try:
        own.environment |= {"UPDRAFT_URL": url, "UPDRAFT_TOKEN": token}
        started = time.monotonic()
        for code, *command in (
            (125, "urun", "true"),
            (125, "ubatch", "true"),
            (1, "updraft", "job", "list"),
        ):
            late = own.run(*map(str, command))
            assert late.returncode == code
            assert late.stderr.count(b"\n") == 1
            assert b"the job that this token belongs to has ended" in late.stderr
        assert time.monotonic() - started < 25  # not tried again and again
    finally:
        own.environment.clear()
        own.environment.update(before)
