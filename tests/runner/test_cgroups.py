"""Slots: limits hold, each task's use is its own, and nothing is left behind."""

import contextlib
import errno
import json
import os
import resource
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.runner.bare_agent import BareAgent
from tests.runner.keeper_process import KeeperProcess
from tests.waiting import until, wait_gone
from updraft import configuration, errors, settings
from updraft.runner.keeper import cgroups, controllers, hierarchies, processes
from updraft.runner.keeper.cgroups import Slot, Slots
from updraft.testing.instance import instance
from updraft.wire import frames
from updraft.wire.packing import unpack_dict

MIB = 1 << 20
PYTHON = [sys.executable, "-I", "-S", "-c"]


def controllers_here() -> frozenset[str]:
    return frozenset(name for tree in hierarchies.find_trees()[0] for name in tree.controllers)


needs_memory = pytest.mark.skipif(
    "memory" not in controllers_here(), reason="no memory cgroup may be used here"
)
needs_processes = pytest.mark.skipif(
    "pids" not in controllers_here(), reason="no pids cgroup may be used here"
)


class Runner:
    """A keeper with cgroups, its agent, and a count of attempts."""

    def __init__(self, folder: Path) -> None:
        self.keeper = KeeperProcess(folder, cgroups=True)
        self.agent = self.keeper.connect()
        self.attempts = 0

    def start(self, *argv: str, **changes: Any) -> int:
        self.attempts += 1
        self.spec = self.keeper.spec(*argv, **changes)
        self.agent.spawn(self.attempts, self.spec)
        return self.attempts

    def run(self, *argv: str, **changes: Any) -> dict[str, Any]:
        """Run a task to its end and return what the keeper tells of it."""
        attempt = self.start(*argv, **changes)
        end = self.agent.wait_end(attempt)
        self.agent.send(frames.FORGET, body={"attempts": [attempt]})
        return end

    def python(self, program: str, **changes: Any) -> dict[str, Any]:
        return self.run(*PYTHON, program, **changes)

    def groups(self) -> list[Path]:
        """The keeper's own group in each hierarchy."""
        record = self.keeper.folder / "cgroups"
        return [Path(path) for path in unpack_dict(record.read_bytes())["groups"]]

    def slots(self) -> set[str]:
        return {path.name for group in self.groups() for path in group.glob("slot-*")}

    def group_of(self, pid: int, name: str) -> Path:
        """The directory whose control file ``name`` counts a process."""
        for group in self.groups():
            for file in group.glob(f"slot-*/{name}"):
                if str(pid) in (file.parent / "cgroup.procs").read_text().split():
                    return file.parent
        raise AssertionError(f"{pid} is in no slot with {name}")


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[Runner]:
    made = Runner(tmp_path / "runner")
    record = made.keeper.folder / "cgroups"
    try:
        yield made
    finally:
        groups = made.groups() if record.exists() else []
        made.keeper.end()
        remove(groups)


def remove(groups: list[Path]) -> None:
    """Remove a killed keeper's groups, as the next keeper would."""
    until(lambda: all(hierarchies.clear(str(group)) for group in groups), "the groups to go")


def hog(size: int) -> str:
    """A program that has this much memory in use at once."""
    return f"x = bytearray({size}); x[::4096] = bytes(len(x[::4096]))"


# -- memory


@needs_memory
def test_a_command_above_its_memory_limit_is_killed_and_told_why(runner: Runner) -> None:
    end = runner.python(hog(200 * MIB), memory_bytes=64 * MIB)
    assert end["status"] == signal.SIGKILL
    assert end["out_of_memory"] == "limit"
    assert end["oom_kills"] == 1
    assert 60 * MIB < end["peak_memory_bytes"] <= 64 * MIB


@needs_memory
def test_a_command_that_outlives_a_child_without_memory_ends_as_it_likes(runner: Runner) -> None:
    script = f"{sys.executable} -I -S -c '{hog(200 * MIB)}'; exit 3"
    end = runner.run("/bin/sh", "-c", script, memory_bytes=64 * MIB)
    assert os.waitstatus_to_exitcode(end["status"]) == 3
    assert end["out_of_memory"] == "limit"


@needs_memory
def test_what_fits_its_limit_is_left_alone(runner: Runner) -> None:
    end = runner.python(hog(40 * MIB), memory_bytes=64 * MIB)
    assert end["status"] == 0
    assert "out_of_memory" not in end


@needs_memory
def test_a_limit_ends_with_its_task(runner: Runner) -> None:
    for size in (64, 0, 96, 32, 0, 64):
        runner.run("true", memory_bytes=size * MIB)
    assert runner.python(hog(200 * MIB))["status"] == 0
    assert runner.python(hog(100 * MIB), memory_bytes=256 * MIB)["status"] == 0
    assert runner.python(hog(100 * MIB), memory_bytes=32 * MIB)["status"] == signal.SIGKILL


@needs_memory
def test_swap_does_not_count_beside_the_limit(runner: Runner) -> None:
    attempt = runner.start("sleep", "1000", memory_bytes=64 * MIB)
    pid = runner.agent.wait_started(attempt)
    if (v1 := list(runner.groups()[0].glob("slot-1/memory.memsw.limit_in_bytes"))) != []:
        folder = runner.group_of(pid, v1[0].name)
        assert int((folder / v1[0].name).read_text()) == 64 * MIB
    elif list(runner.groups()[0].glob("slot-1/memory.swap.max")):
        assert (runner.group_of(pid, "memory.swap.max") / "memory.swap.max").read_text() == "0\n"
    else:
        pytest.skip("this kernel does not limit swap")


@needs_memory
def test_a_peak_is_the_task_s_own(runner: Runner) -> None:
    large = runner.python(hog(200 * MIB))["peak_memory_bytes"]
    assert 200 * MIB < large < 240 * MIB
    for _ in range(2 * cgroups.READY_SLOTS):  # the same slot is among these
        small = runner.run("true")["peak_memory_bytes"]
        assert small is None or small < 20 * MIB
    assert len(runner.slots()) <= cgroups.READY_SLOTS + 1


@needs_memory
def test_a_peak_does_not_count_files_that_an_earlier_task_read(
    runner: Runner, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    write = f"open({str(file)!r}, 'wb').write(bytes({100 * MIB}))"
    assert runner.python(write)["status"] == 0
    for _ in range(2 * cgroups.READY_SLOTS):
        small = runner.run("true")["peak_memory_bytes"]
        assert small is None or small < 20 * MIB


@needs_memory
def test_files_left_in_memory_do_not_count_against_the_next_task(runner: Runner) -> None:
    left = Path("/dev/shm") / f"updraft-test-{os.getpid()}"
    write = f"open({str(left)!r}, 'wb').write(bytes({50 * MIB}))"
    try:
        assert runner.python(write, memory_bytes=64 * MIB)["status"] == 0
        assert left.stat().st_size == 50 * MIB
        for _ in range(2 * cgroups.READY_SLOTS):
            end = runner.python(hog(30 * MIB), memory_bytes=64 * MIB)
            assert end["status"] == 0, end
    finally:
        left.unlink(missing_ok=True)


@needs_memory
def test_without_a_limit_there_is_nothing_unenforced(runner: Runner) -> None:
    runner.run("true")
    runner.run("true", memory_bytes=64 * MIB)
    assert [started["unenforced"] for started in runner.agent.started.values()] == [[], []]


# -- processes


@needs_processes
def test_every_task_has_a_bound_on_its_processes(runner: Runner) -> None:
    attempt = runner.start("sleep", "1000")
    folder = runner.group_of(runner.agent.wait_started(attempt), "pids.max")
    most = int((folder / "pids.max").read_text())
    assert most == controllers.process_bound()
    assert 100 < most <= int(Path("/proc/sys/kernel/pid_max").read_text()) // 4


@needs_processes
def test_a_fork_bomb_is_bounded_and_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controllers, "process_bound", lambda: 50)
    slots = Slots(str(tmp_path))
    slot = slots.take(0, 1000)
    assert slot is not None
    bomb = "import os\nwhile True:\n try: os.fork()\n except BlockingIOError: print(1, flush=True)"
    process = start_in(slot, bomb)
    try:
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], 30)[0], "no fork was ever refused"
        assert slot_size(slot) == 50
        slots.give_back(slot)
        until(lambda: tidied(slots), "the bomb to end", 30)
        assert slot_size(slot) == 0
        assert slots.take(0, 1000) is not None
    finally:
        process.communicate()
        slots.close()


def start_in(slot: Slot, program: str) -> subprocess.Popen[bytes]:
    """Run a program in a slot, as a leader does."""

    def join() -> None:
        for entry in slot.entries[1 if slot.cloned else 0 :]:
            os.write(entry, b"0")

    command = [sys.executable, "-I", "-S", "-c", program]
    return subprocess.Popen(command, stdout=subprocess.PIPE, preexec_fn=join)


def tidied(slots: Slots) -> bool:
    """Tidy; return whether there is no more to do."""
    slots.tidy()
    return slots.again_at is None


def slot_size(slot: Slot) -> int:
    return len({pid for folder in slot.folders for pid in hierarchies.members(folder)})


@needs_processes
def test_what_hides_in_a_group_below_is_ended_too(tmp_path: Path) -> None:
    slots = Slots(str(tmp_path))
    slot = slots.take(0, 1000)
    assert slot is not None
    process = start_in(slot, "import time; print(flush=True); time.sleep(1000)")
    assert process.stdout is not None
    process.stdout.readline()
    below = Path(slot.folders[0]) / "below"
    below.mkdir()
    (below / "cgroup.procs").write_text(str(process.pid))
    slots.give_back(slot)
    slots.tidy()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    slots.close()
    assert not below.parent.exists()


# -- CPU time, reads and writes


def test_cpu_time_is_counted_also_of_children_that_nobody_waits_for(runner: Runner) -> None:
    if not runner.groups():
        pytest.skip("no cgroup may be used here")
    busy = "while time.process_time() < 0.3: pass"
    program = f"""
import os, signal, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
if os.fork() == 0:
    {busy}
    os._exit(0)
try:
    os.wait()
except ChildProcessError:
    pass
"""
    assert 0.3e9 <= runner.python(program)["cpu_ns"] < 3e9
    for _ in range(2 * cgroups.READY_SLOTS):
        assert 0 < runner.run("true")["cpu_ns"] < 0.3e9


def test_reads_and_writes_are_counted(runner: Runner, tmp_path: Path) -> None:
    file = tmp_path / "file"
    program = f"""
import os
fd = os.open({str(file)!r}, os.O_RDWR | os.O_CREAT)
os.write(fd, os.urandom({8 * MIB}))
os.fsync(fd)
os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
while os.read(fd, 1 << 20): pass
os.lseek(fd, 0, 0)
while os.read(fd, 1 << 20): pass
"""
    end = runner.python(program)
    if end["written_bytes"] in (None, 0):
        pytest.skip("the test's folder lies in memory, or the kernel does not count")
    assert 8 * MIB <= end["written_bytes"] < 9 * MIB
    assert 8 * MIB <= end["read_bytes"] < 16 * MIB
    assert runner.run("true")["written_bytes"] < MIB


def test_cpus_asked_for_are_shares(runner: Runner) -> None:
    if "cpu" not in controllers_here():
        pytest.skip("no cpu cgroup may be used here")
    for cpus_milli, shares, weight in ((3000, 3072, 300), (0, 1024, 100), (500, 512, 50)):
        attempt = runner.start("sleep", "1000", cpus_milli=cpus_milli)
        pid = runner.agent.wait_started(attempt)
        name = "cpu.weight" if list(runner.groups()[0].glob("cgroup.type")) else "cpu.shares"
        value = int((runner.group_of(pid, name) / name).read_text())
        assert value == (weight if name == "cpu.weight" else shares)


# -- slots


@needs_processes
def test_slots_are_used_again(runner: Runner) -> None:
    for _ in range(20):
        runner.run("true")
    assert len(runner.slots()) <= cgroups.READY_SLOTS + 1


@needs_processes
def test_each_of_many_tasks_has_a_slot_of_its_own_and_few_are_kept(runner: Runner) -> None:
    count = 2 * cgroups.MOST_IDLE_SLOTS
    attempts = [runner.start("sleep", "1000") for _ in range(count)]
    pids = [runner.agent.wait_started(attempt) for attempt in attempts]
    assert len({runner.group_of(pid, "pids.max") for pid in pids}) == count
    for attempt in attempts:
        runner.agent.send(frames.KILL, attempt, body={"why": "cancel", "grace_ms": 0})
    for attempt in attempts:
        runner.agent.wait_end(attempt)
    until(lambda: len(runner.slots()) <= cgroups.MOST_IDLE_SLOTS, "the surplus to go")


@needs_processes
def test_a_slot_whose_limits_cannot_be_set_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slots = Slots(str(tmp_path))
    try:
        group = Path(unpack_dict((tmp_path / "cgroups").read_bytes())["groups"][0])

        def fail(*_: object) -> None:
            raise OSError(errno.EBUSY, "busy")

        with monkeypatch.context() as patched:
            patched.setattr(Slot, "limit", fail)
            assert slots.take(1 << 28, 1000) is None
        slots.tidy()
        assert len(list(group.glob("slot-*"))) == cgroups.READY_SLOTS
    finally:
        slots.close()


@needs_processes
def test_a_slot_that_cannot_be_opened_leaves_no_descriptor_open(tmp_path: Path) -> None:
    slots = Slots(str(tmp_path))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    filler = [os.open(os.devnull, os.O_RDONLY)]
    try:
        while filler[-1] < max(open_descriptors()):  # no gap is left below the limit
            filler.append(os.open(os.devnull, os.O_RDONLY))
        before = open_descriptors()
        for room in range(12):
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(before) + 1 + room, hard))
            slot = slots.take(0, 0)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            if slot is not None:
                slot.close()
            assert open_descriptors() == before
    finally:
        for fd in filler:
            os.close(fd)
        slots.close()


def open_descriptors() -> dict[int, str]:
    """What this process holds open."""
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one that lists them
            found[int(entry.name)] = str(entry.readlink())
    return {fd: target for fd, target in found.items() if not target.startswith("/proc/")}


@needs_memory
def test_memory_that_ran_out_beside_a_task_is_told_with_the_task(runner: Runner) -> None:
    task = runner.start("cat", memory_bytes=64 * MIB)
    runner.agent.wait_started(task)
    beside = runner.start(*PYTHON, hog(256 * MIB), beside=task)
    assert runner.agent.wait_end(beside)["status"] == signal.SIGKILL
    runner.agent.send(frames.EOF, task, at=0)
    assert runner.agent.wait_end(task)["out_of_memory"] == "limit"


@needs_processes
def test_a_keeper_that_leaves_takes_its_groups_along(runner: Runner) -> None:
    runner.run("true")
    groups = runner.groups()
    assert all(group.exists() for group in groups)
    runner.agent.send(frames.STOP, body={"cancel": False})
    assert runner.keeper.process.wait(10) == 0
    assert [group for group in groups if group.exists()] == []
    assert not (runner.keeper.folder / "cgroups").exists()


STUBBORN = """
trap '' TERM HUP INT
setsid sh -c 'trap "" TERM HUP INT; echo $$; while :; do sleep 1000; done' &
(setsid sleep 1000 & echo $!)
echo $$
while :; do sleep 1000; done
"""


@needs_processes
def test_nothing_lives_on_when_keeper_and_leaders_are_killed_at_once(runner: Runner) -> None:
    attempt = runner.start("/bin/sh", "-c", STUBBORN)
    pids = [int(line) for line in runner.agent.wait_lines(attempt, runner.spec, 3)]
    groups = runner.groups()
    leaders = runner.keeper.leaders()
    for leader in leaders:  # so that none hears of its keeper's end
        os.kill(leader, signal.SIGSTOP)
    runner.keeper.kill()
    for leader in leaders:
        os.kill(leader, signal.SIGKILL)
        wait_gone(leader)
    for pid in pids:
        os.kill(pid, 0)  # they live on: nobody is left to end them

    runner.keeper.start()
    agent = runner.keeper.connect()
    assert "lost" in agent.attempts[attempt]["end"]
    for pid in pids:
        wait_gone(pid, 0.5)
    assert [group for group in groups if group.exists()] == []


@needs_processes
def test_a_dead_keeper_s_groups_go_although_its_folder_is_gone(
    runner: Runner, tmp_path: Path
) -> None:
    gone = Runner(tmp_path / "gone")
    groups = gone.groups()
    assert groups[0].parent == runner.groups()[0].parent
    gone.keeper.kill()
    other = Runner(tmp_path / "other")
    try:
        until(lambda: not any(group.exists() for group in groups), "the groups to go")
        assert all(group.exists() for group in runner.groups()), "those of a living keeper stay"
        assert runner.run("true")["status"] == 0
    finally:
        gone.keeper.end()
        groups = other.groups()
        other.keeper.end()
        remove(groups)


def test_a_child_that_cannot_be_born_in_a_group_joins_it(tmp_path: Path) -> None:
    with tmp_path.joinpath("file").open("wb") as procs, tmp_path.joinpath("other").open("wb") as o:
        no_group = os.open(tmp_path, os.O_RDONLY)
        pid, left = processes.fork_into([no_group, procs.fileno(), o.fileno()])
        if pid == 0:
            os._exit(0 if left == [procs.fileno(), o.fileno()] else 1)
        assert os.waitpid(pid, 0)[1] == 0
        os.close(no_group)


# -- where they are not


def test_without_cgroups_tasks_run_and_the_limit_is_said_not_to_hold(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    agent.spawn(1, keeper.spec(*PYTHON, hog(100 * MIB), memory_bytes=32 * MIB))
    end = agent.wait_end(1)
    assert end["status"] == 0
    assert agent.started[1]["unenforced"] == ["memory"]
    assert 90 * MIB < end["peak_memory_bytes"] < 150 * MIB
    assert end["cpu_ns"] > 0
    agent.spawn(2, keeper.spec("true"))
    assert agent.wait_end(2)["peak_memory_bytes"] is None, "its parent's peak is not its own"
    assert agent.started[2]["unenforced"] == []
    found = cgroups.describe(str(keeper.folder))
    assert all(not holds for _, holds, _ in found)
    assert all("runner.cgroups = true" in text for what, _, text in found if "limits" in what)


ORDINARY = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--no-new-privs"]
DESCRIBE = """
import json, os, sys
from updraft.runner.keeper.cgroups import Slots, describe
folder = sys.argv[1]
before = describe(folder)
slots = Slots(folder)
slot = slots.take(1 << 26, 1000)
print(json.dumps([os.geteuid(), before, describe(folder), slot is not None]))
slots.close()
"""


def test_an_ordinary_user_is_told_what_does_not_hold_and_how_to_mend_it(tmp_path: Path) -> None:
    command = [sys.executable, "-I", "-c", DESCRIBE]
    if os.geteuid() == 0:
        command = ORDINARY + command
        os.chown(tmp_path, 65534, 65534)
        if subprocess.run([*command[:-1], "import updraft"], capture_output=True).returncode:
            pytest.skip("an ordinary user may not run this interpreter")
    ran = subprocess.run([*command, "."], cwd=tmp_path, capture_output=True, check=True)
    uid, before, during, got_slot = json.loads(ran.stdout)
    assert uid != 0
    assert before == during, "what is foretold is what happens"
    if not got_slot:
        limits = {what: (holds, text) for what, holds, text in during}["memory limits"]
        assert not limits[0]
        assert "not enforced: " in limits[1]
        assert "; " in limits[1], "what is so; how to mend it"


@pytest.mark.parametrize(
    ("text", "cgroups_wanted"), [("", True), ("cgroups = true", True), ("cgroups = false", False)]
)
def test_cgroups_can_be_switched_off(tmp_path: Path, text: str, cgroups_wanted: bool) -> None:
    folders = settings.folders({"UPDRAFT_HOME": str(tmp_path)})
    Path(folders.config_file).parent.mkdir()
    Path(folders.config_file).write_text(f"[runner]\n{text}\n")
    assert configuration.load(folders).runner.cgroups is cgroups_wanted


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("cgroups = 'maybe'", "runner.cgroups: 'maybe' is neither true nor false"),
        ("cgroup = true", "[runner] has no key 'cgroup'; did you mean cgroups?"),
    ],
)
def test_a_wrong_switch_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    folders = settings.folders({"UPDRAFT_HOME": str(tmp_path)})
    Path(folders.config_file).parent.mkdir()
    Path(folders.config_file).write_text(f"[runner]\n{text}\n")
    with pytest.raises(errors.BadConfiguration) as caught:
        configuration.load(folders)
    assert complaint in str(caught.value)


# -- all of Updraft


@needs_memory
def test_urun_says_that_memory_ran_out(tmp_path: Path) -> None:
    with instance(tmp_path / "home") as own:
        ran = own.run("urun", "--memory", "64M", *PYTHON, hog(200 * MIB))
        assert ran.returncode == errors.EXIT_FAILURE
        last = ran.stderr.decode().splitlines()[-1]
        assert last.endswith("failed: out of memory: limit 64 MiB reached; raise --memory"), last
        record = unpack_dict((own.state / "runner" / "cgroups").read_bytes())
        job = json.loads(own.run("updraft", "job", "list", "--all", "--json").stdout)
    groups = [Path(path) for path in record["groups"]]
    assert groups
    until(lambda: not any(group.exists() for group in groups), "stop to remove the groups")
    assert job


@needs_memory
def test_urun_repeats_the_end_of_a_command_that_hid_why(tmp_path: Path) -> None:
    script = f"{sys.executable} -I -S -c '{hog(200 * MIB)}'; exit $?"
    with instance(tmp_path / "home") as own:
        ran = own.run("urun", "--memory", "64M", "sh", "-c", script)
    assert ran.returncode == 137
    assert "limit 64 MiB reached; raise --memory" in ran.stderr.decode()
