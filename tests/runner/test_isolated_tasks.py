"""What an isolated task is: its owner's, in a view of its own, and otherwise as any task."""

import os
import resource
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.runner.bare_agent import BareAgent, output
from tests.runner.keeper_process import KeeperProcess
from tests.runner.users import ALICE, PYTHON, owner
from tests.waiting import until, wait_gone
from updraft.runner.keeper import hierarchies, isolation
from updraft.runner.keeper.processes import descendants
from updraft.wire import frames
from updraft.wire.packing import unpack_dict

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("isolating")]

TTY: dict[str, Any] = {"rows": 24, "columns": 80, "attributes": None, "stderr": True}
SECRET = "root's secret"


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    return tmp_path / "runner/work/alice/job"


@pytest.fixture
def keeper(tmp_path: Path, workspace: Path) -> Iterator[KeeperProcess]:
    """A keeper whose tasks are Alice's, unless the test says otherwise."""
    keeper = KeeperProcess(tmp_path / "runner", isolation=owner(ALICE, workspace), cgroups=True)
    record = keeper.folder / "cgroups"
    try:
        yield keeper
    finally:
        groups = groups_of(keeper) if record.exists() else []
        keeper.end()
        until(lambda: all(hierarchies.clear(str(group)) for group in groups), "the groups to go")


def groups_of(keeper: KeeperProcess) -> list[Path]:
    record = keeper.folder / "cgroups"
    return [Path(path) for path in unpack_dict(record.read_bytes())["groups"]]


def run(keeper: KeeperProcess, agent: BareAgent, script: str, **changes: Any) -> list[str]:
    """Run a script as the next attempt to its end; return the lines that it wrote."""
    attempt = max([0, *agent.started, *agent.ends]) + 1
    spec = keeper.shell(f"exec 2>&1; {script}", **{"fallback_directory": True, **changes})
    agent.spawn(attempt, spec)
    end = agent.wait_end(attempt)
    assert "status" in end, end
    return output(spec).decode().splitlines()


def mine(keeper: KeeperProcess, **changes: Any) -> dict[str, Any]:
    """What isolates a task of Alice's, with changes."""
    assert keeper.isolation is not None
    return {**keeper.isolation, **changes}


def status_of(pid: int | str) -> dict[str, list[str]]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: rest.split() for name, _, rest in (line.partition(":") for line in lines)}


def test_a_task_is_its_owner_and_can_become_nobody_else(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    agent.spawn(1, keeper.spec("cat", isolation=mine(keeper, groups=[312_999])))
    pid = agent.wait_started(1)
    status = status_of(pid)
    assert (status["Uid"], status["Gid"]) == ([str(ALICE)] * 4, [str(ALICE)] * 4)
    assert status["Groups"] == ["312999"]
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name][0], 16) == 0, name
    assert status["NoNewPrivs"] == ["1"]
    assert status["NSpid"] == [str(pid), "2"], "it is reported by the number it has here"
    for name in ("mnt", "pid", "ipc"):
        ours = Path(f"/proc/self/ns/{name}").readlink()
        assert Path(f"/proc/{pid}/ns/{name}").readlink() != ours


def test_a_task_has_its_three_streams_and_no_other_descriptor(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    for tty in (None, TTY):
        attempt = 1 if tty is None else 2
        agent.spawn(attempt, keeper.spec("cat", tty=tty))
        pid = agent.wait_started(attempt)
        assert {path.name for path in Path(f"/proc/{pid}/fd").iterdir()} == {"0", "1", "2"}


def test_a_setuid_program_gives_nothing(
    keeper: KeeperProcess, agent: BareAgent, open_folder: Path
) -> None:
    program, secret = open_folder / "cat", open_folder / "secret"
    shutil.copy("/bin/cat", program)
    program.chmod(0o4755)
    secret.write_text(SECRET)
    secret.chmod(0o600)
    command = [str(program), str(secret)]
    alone = subprocess.run(command, user=ALICE, group=ALICE, capture_output=True, check=True)
    assert alone.stdout.decode() == SECRET
    assert SECRET not in run(keeper, agent, " ".join(command))[0]
    for command in (["su", "-c", "id"], ["mount", "--bind", "/tmp", "/mnt"], ["passwd", "root"]):
        if (path := shutil.which(command[0])) and Path(path).stat().st_mode & stat.S_ISUID:
            assert "uid=0" not in "".join(run(keeper, agent, " ".join(command) + " </dev/null"))


def test_a_granted_gpu_is_there_and_another_is_not(
    keeper: KeeperProcess, agent: BareAgent, gpu: Path
) -> None:
    other = Path(f"{gpu}99")
    os.mknod(other, stat.S_IFCHR | 0o660, os.makedev(1, 5))
    try:
        os.chown(other, 0, 312_777)
        other.chmod(0o660)
        ask = "head -c 1 {} | wc -c; ls /dev/ | grep -c nvidia; id -G"
        granted = mine(keeper, devices=[os.fsencode(gpu)])
        assert run(keeper, agent, ask.format(gpu), isolation=granted) == ["1", "1", str(ALICE)]
        # One for a group only: the task gets the group, since it has no other way to use it.
        granted["devices"] = [os.fsencode(other)]
        said = run(keeper, agent, ask.format(other), isolation=granted)
        assert said == ["1", "1", f"{ALICE} 312777"]
        said = run(keeper, agent, ask.format(gpu))
        assert said[1:] == ["0", "0", str(ALICE)]
    finally:
        other.unlink()


def test_a_device_that_is_none_is_refused(keeper: KeeperProcess, agent: BareAgent) -> None:
    for attempt, path in enumerate((b"/etc/shadow", b"/dev/../etc/shadow", b"/dev"), start=1):
        wanted = mine(keeper, devices=[path])
        agent.spawn(attempt, keeper.spec("true", isolation=wanted))
        end = agent.wait_end(attempt)
        assert end["refused"] == "isolation"
        assert "is not in /dev" in end["message"]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"uid": 0}, "isolation.uid is 0; it must be above 0"),
        ({"gid": 0}, "isolation.gid is 0; it must be above 0"),
        ({"uid": -1}, "isolation.uid is -1; it must be above 0"),
        ({"uid": True}, "isolation.uid is True; it must be above 0"),
        ({"groups": [5, 0]}, "isolation.groups has group 0; leave it out"),
        (
            {"user": b"a\0LD_PRELOAD=x"},
            "isolation.user is b'a\\x00LD_PRELOAD=x'; it must have no NUL",
        ),
        ({"workspace": b"work"}, "isolation.workspace is b'work'; it must begin with /"),
    ],
)
def test_who_would_be_root_is_refused(
    keeper: KeeperProcess, agent: BareAgent, changes: dict[str, Any], why: str
) -> None:
    agent.spawn(1, keeper.spec("true", isolation=mine(keeper, **changes)))
    end = agent.wait_end(1)
    assert why in end["message"]
    assert "status" not in end
    assert not (keeper.folder / "private/1").exists()


def test_without_its_workspace_a_task_does_not_start(
    keeper: KeeperProcess, agent: BareAgent, workspace: Path
) -> None:
    workspace.rmdir()
    agent.spawn(1, keeper.spec("true"))
    end = agent.wait_end(1)
    assert end["refused"] == "isolation"
    assert str(workspace) in end["message"]
    workspace.symlink_to("/")
    agent.spawn(2, keeper.spec("true"))
    assert agent.wait_end(2)["refused"] == "isolation"
    workspace.unlink()


# -- directory, home, limits


def test_the_directory_is_entered_as_its_owner(
    keeper: KeeperProcess, agent: BareAgent, open_folder: Path, workspace: Path
) -> None:
    hers, theirs = open_folder / "hers", open_folder / "theirs"
    hers.mkdir()
    theirs.mkdir(mode=0o700)
    os.chown(hers, ALICE, ALICE)
    assert run(keeper, agent, "pwd", directory=os.fsencode(hers)) == [str(hers)]
    assert "directory" not in agent.started[1]
    refused = keeper.spec("true", directory=os.fsencode(theirs))
    agent.spawn(2, refused)
    end = agent.wait_end(2)
    assert (end["refused"], end["message"]) == ("directory", f"{theirs}: Permission denied")
    # Who asks for it is in the workspace instead, and is told.
    for directory in (theirs, Path("/no/such/folder")):
        said = run(keeper, agent, "pwd; echo $PWD", directory=os.fsencode(directory))
        assert said == [str(workspace)] * 2
        assert agent.started[max(agent.started)]["directory"] == os.fsencode(workspace)
    # What fails after that is still told as what it is.
    changes = {"directory": b"/no/such/folder", "fallback_directory": True}
    agent.spawn(50, keeper.spec("no-such-command", **changes))
    assert agent.wait_end(50)["refused"] == "exec"


def test_a_relative_directory_leads_nowhere_that_is_hidden(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    assert run(keeper, agent, "pwd", directory=b".") == ["/"]


def test_a_home_that_is_not_the_owners_is_replaced(
    keeper: KeeperProcess, agent: BareAgent, open_folder: Path, workspace: Path
) -> None:
    home = open_folder / "home"
    home.mkdir()
    ask = "echo $HOME $USER $LOGNAME $SHELL $TMPDIR $XDG_RUNTIME_DIR"
    sent = b"PATH=/usr/bin:/bin\0USER=u\0LOGNAME=u\0SHELL=/bin/zsh\0TMPDIR=/x\0XDG_RUNTIME_DIR=/r"
    for foreign in (b"/root", b"/", b"", os.fsencode(home), b"relative"):
        said = run(keeper, agent, ask, environment=sent + b"\0HOME=" + foreign)
        assert said == [f"{workspace} user{ALICE} user{ALICE} /bin/sh /tmp"]
    mapped = mine(keeper, home=b"/home/alice", shell=b"/bin/bash")
    assert run(keeper, agent, ask, environment=sent, isolation=mapped) == [
        f"/home/alice user{ALICE} user{ALICE} /bin/bash /tmp"
    ]
    os.chown(home, ALICE, ALICE)
    said = run(keeper, agent, ask, environment=sent + b"\0HOME=" + os.fsencode(home))
    assert said == [f"{home} u u /bin/zsh /tmp"]


def test_its_user_has_a_name_here_and_nowhere_else(
    keeper: KeeperProcess, agent: BareAgent, workspace: Path
) -> None:
    before = [Path(path).read_bytes() for path in ("/etc/passwd", "/etc/group")]
    ask = (
        "id -un; id -gn; getent passwd $(id -u); getent group $(id -g); getent passwd 0; "
        "echo x >> /etc/passwd; rm -f /etc/group; umount /etc/passwd"
    )
    for _ in range(2):
        said = run(keeper, agent, ask)
        assert said[:5] == [
            f"user{ALICE}", f"user{ALICE}",
            f"user{ALICE}:x:{ALICE}:{ALICE}::{workspace}:/bin/sh", f"user{ALICE}:x:{ALICE}:",
            subprocess.run(["getent", "passwd", "0"], capture_output=True, text=True, check=True)
            .stdout.strip(),
        ]  # fmt: skip
        assert len(said) == 8, "each attempt to change them fails"
        said = run(keeper, agent, "id -un", isolation=mine(keeper, user=b"a:b"))
        assert f"user{ALICE}" not in said
    assert [Path(path).read_bytes() for path in ("/etc/passwd", "/etc/group")] == before
    private = keeper.folder / "private"
    until(lambda: list(private.iterdir()) == [], "the tasks' folders to go")


def test_limits_stay_below_the_runners_own_and_nobody_is_nicer_to_himself(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    spec = {"rlimits": [[resource.RLIMIT_NOFILE, 100, most + 1000]], "nice": -5}
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert run(keeper, agent, "ulimit -Hn; nice", **spec) == [str(most), str(max(own, 0))]
    assert agent.started[1]["clamped_limits"] == [resource.RLIMIT_NOFILE]
    assert run(keeper, agent, "nice", nice=7) == [str(max(own, 7))]


# -- streams and terminals


def test_streams_can_be_opened_by_their_names(keeper: KeeperProcess, agent: BareAgent) -> None:
    script = "echo 1 >/dev/stdout; echo 2 >/dev/stderr; echo 3 >/proc/self/fd/1; cat /dev/stdin"
    spec = keeper.shell(script)
    agent.spawn(1, spec)
    agent.send(frames.DATA, 1, data=b"4\n")
    agent.send(frames.EOF, 1, at=2)
    assert agent.wait_end(1)["status"] == 0
    assert output(spec) == b"1\n3\n4\n"
    assert output(spec, frames.STDERR) == b"2\n"


def test_a_terminal_is_the_tasks_own(keeper: KeeperProcess, agent: BareAgent) -> None:
    script = (
        "tty=$(tty); stat -c '%u %g %a' $tty; echo here >/dev/tty; echo there >$tty; mesg n; "
        "stat -c %a $tty; ps -o tty= -p $$"
    )
    group = isolation.terminal_group()
    said = run(keeper, agent, script, tty=TTY)
    assert said[:4] == [f"{ALICE} {group} 620", "here", "there", "600"]
    assert said[4].startswith("pts/")


@pytest.mark.skipif(shutil.which("script") is None, reason="script is not installed")
def test_a_task_makes_terminals_of_its_own(keeper: KeeperProcess, agent: BareAgent) -> None:
    said = run(keeper, agent, "script -qec 'tty; echo inner' /dev/null", tty=TTY)
    assert said[0].startswith("/dev/pts/")
    assert said[1] == "inner"


# -- temporary folders


def test_temporary_folders_are_the_tasks_own_and_go_with_it(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    ask = "ls -A /tmp /var/tmp /dev/shm; for d in /tmp /var/tmp /dev/shm; do stat -c %a $d; done"
    script = (
        "touch /tmp/a /var/tmp/b /dev/shm/c; mkdir -p /tmp/d/e/f; stat -f -c %T /tmp; echo; cat"
    )
    spec = keeper.shell(script)
    agent.spawn(1, spec)
    agent.wait_started(1)
    kind = agent.wait_lines(1, spec, 1)[0]
    assert (
        kind
        == subprocess.check_output(["stat", "-f", "-c", "%T", keeper.folder], text=True).strip()
    )
    private = keeper.folder / "private/1"
    assert (private / "tmp/a").exists()
    assert (private / "var-tmp/b").exists()
    assert not Path("/dev/shm/c").exists()
    assert private.parent.stat().st_mode & 0o777 == 0o700
    other = run(keeper, agent, ask)
    assert not {"a", "b", "c", "d"} & set(other)
    assert other[-3:] == ["1777"] * 3
    agent.send(frames.EOF, 1, at=0)
    agent.wait_end(1)
    until(lambda: not private.exists(), "the temporary folder to go")


def test_what_a_killed_keeper_left_in_temporary_folders_goes_when_the_next_starts(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    spec = keeper.shell("mkdir /tmp/deep; touch /tmp/deep/file; ln -s / /tmp/link; echo; cat")
    agent.spawn(1, spec)
    agent.wait_output(1, frames.STDOUT, 1)
    assert (keeper.folder / "private/1/tmp/deep/file").exists()
    for pid in keeper.kill():
        wait_gone(pid)
    keeper.start()
    until(lambda: not (keeper.folder / "private/1").exists(), "the temporary folder to go")
    assert Path("/etc/passwd").exists()


# -- endings


def test_a_killed_leader_takes_all_with_it_at_once(keeper: KeeperProcess, agent: BareAgent) -> None:
    spec = keeper.shell("setsid sleep 1000 & setsid sh -c 'trap \"\" TERM; sleep 1000' & echo; cat")
    agent.spawn(1, spec)
    pid = agent.wait_started(1)
    agent.wait_output(1, frames.STDOUT, 1)
    leader = keeper.leader_of(pid)
    below = descendants(leader)
    assert len(below) >= 4
    os.kill(leader, signal.SIGKILL)
    assert "leader" in agent.wait_end(1)["lost"]
    assert not [each for each in below if Path(f"/proc/{each}").exists()]


@pytest.mark.parametrize("stopped", [False, True])
def test_a_task_ends_with_its_keeper_and_its_leader(
    keeper: KeeperProcess, agent: BareAgent, stopped: bool
) -> None:
    spec = keeper.shell("setsid sleep 1000 & echo; cat")
    agent.spawn(1, spec)
    pid = agent.wait_started(1)
    agent.wait_output(1, frames.STDOUT, 1)
    leader = keeper.leader_of(pid)
    below = descendants(leader)
    os.kill(leader, signal.SIGSTOP if stopped else 0)
    keeper.kill()
    for each in [leader, *below]:
        wait_gone(each)


def test_a_leader_leads_one_task_only(keeper: KeeperProcess, agent: BareAgent) -> None:
    seen = []
    for attempt in range(1, 5):
        agent.spawn(attempt, keeper.spec("cat"))
        seen.append(keeper.leader_of(agent.wait_started(attempt)))
        agent.send(frames.EOF, attempt, at=0)
        assert agent.wait_end(attempt)["status"] == 0
        wait_gone(seen[-1])
    assert len(set(seen)) == 4


def test_leaders_are_born_into_namespaces_ahead_of_need(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    run(keeper, agent, "true")

    def idle() -> list[int]:
        return [pid for pid in keeper.leaders() if len(status_of(pid)["NSpid"]) == 2]

    until(lambda: len(idle()) == 2, "idle leaders")
    ready = idle()
    agent.spawn(9, keeper.spec("cat"))
    assert keeper.leader_of(agent.wait_started(9)) in ready


# -- beside


def beside(keeper: KeeperProcess, script: str, **changes: Any) -> dict[str, Any]:
    """What a server orders for ``updraft exec`` beside attempt 1."""
    whole = keeper.shell(script)
    names = "job folder argv set_environment stdin closed_fds one_output tty attached limits"
    names += " grace_ms deadline_ms quota_bytes"
    return {**{name: whole[name] for name in names.split()}, "beside": 1, **changes}


def test_what_runs_beside_a_task_is_in_its_namespaces_and_its_owner(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    spec = keeper.shell("echo mine >/tmp/file; echo; exec cat")
    agent.spawn(1, spec)
    pid = agent.wait_started(1)
    agent.wait_output(1, frames.STDOUT, 1)
    inside = beside(keeper, "cat /tmp/file; id -u; kill -0 2 && echo sees; read line; exit 3")
    agent.spawn(2, inside)
    other = agent.wait_started(2)
    assert agent.wait_lines(2, inside, 3) == ["mine", str(ALICE), "sees"]
    for name in ("mnt", "pid", "ipc"):
        assert (
            Path(f"/proc/{other}/ns/{name}").readlink() == Path(f"/proc/{pid}/ns/{name}").readlink()
        )
    status = status_of(other)
    assert status["Uid"] == [str(ALICE)] * 4
    assert status["CapBnd"] == ["0" * 16]
    assert status["NoNewPrivs"] == ["1"]
    agent.send(frames.DATA, 2, data=b"go\n")
    assert os.waitstatus_to_exitcode(agent.wait_end(2)["status"]) == 3
    # With a terminal, which stops and goes on.
    on_terminal = beside(keeper, "tty; exec cat", tty=TTY)
    agent.spawn(3, on_terminal)
    assert agent.wait_lines(3, on_terminal, 1)[0].startswith("/dev/pts/")
    agent.send(frames.DATA, 3, data=b"\x1a")
    agent.until(lambda: (frames.STOPPED, 3) in agent.said)
    agent.send(frames.SIGNAL, 3, body={"signal": signal.SIGCONT})
    agent.until(lambda: (frames.CONTINUED, 3) in agent.said)
    agent.send(frames.DATA, 3, at=1, data=b"\x04")
    assert agent.wait_end(3)["status"] == 0
    assert 1 not in agent.ends
    agent.send(frames.EOF, 1, at=0)
    assert agent.wait_end(1)["status"] == 0


def test_what_runs_beside_a_task_is_as_isolated_whatever_is_ordered(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    agent.spawn(1, keeper.spec("cat"))
    agent.wait_started(1)
    for attempt, ordered in enumerate((None, mine(keeper, uid=312_888)), start=2):
        spec = beside(keeper, "id -u", isolation=ordered)
        agent.spawn(attempt, spec)
        assert agent.wait_end(attempt)["status"] == 0
        assert output(spec) == b"%d\n" % ALICE


def test_what_runs_beside_a_task_ends_with_it(keeper: KeeperProcess, agent: BareAgent) -> None:
    agent.spawn(1, keeper.spec("cat", grace_ms=5000))
    agent.wait_started(1)
    spec = beside(keeper, "trap 'echo bye; exit 4' TERM; echo; while :; do sleep 0.01; done")
    agent.spawn(2, spec)
    agent.wait_output(2, frames.STDOUT, 1)
    agent.send(frames.EOF, 1, at=0)
    assert os.waitstatus_to_exitcode(agent.wait_end(2)["status"]) == 4
    assert agent.wait_end(1)["status"] == 0
    assert output(spec) == b"\nbye\n"


def test_what_runs_beside_a_task_that_is_killed_is_told_of_as_killed(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    agent.spawn(1, keeper.spec("cat"))
    agent.wait_started(1)
    agent.spawn(2, beside(keeper, "exec sleep 1000"))
    pid = agent.wait_started(2)
    agent.send(frames.KILL, 1, body={"why": "cancel", "grace_ms": 0})
    assert agent.wait_end(2)["status"] == signal.SIGKILL
    assert agent.wait_end(1)["status"] == signal.SIGKILL
    wait_gone(pid)


def test_what_cannot_run_beside_a_task_is_refused(keeper: KeeperProcess, agent: BareAgent) -> None:
    agent.spawn(1, keeper.spec("cat"))
    agent.wait_started(1)
    agent.spawn(2, beside(keeper, "true", argv=[b"no-such-command"]))
    assert agent.wait_end(2)["refused"] == "exec"
    agent.spawn(3, beside(keeper, "exit 5"))
    assert os.waitstatus_to_exitcode(agent.wait_end(3)["status"]) == 5


# -- limits and measures


def test_memory_and_time_are_limited_and_measured_as_ever(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    if not any("memory" in tree.controllers for tree in hierarchies.find_trees()[0]):
        pytest.skip("no memory cgroup may be used here")
    agent.spawn(1, keeper.spec(*PYTHON, "x = bytearray(200 << 20)", memory_bytes=64 << 20))
    end = agent.wait_end(1)
    assert end["status"] == signal.SIGKILL
    assert end["out_of_memory"] == "limit"
    program = "import time; x = bytearray(50 << 20); e = time.process_time() + .2\n"
    program += "while time.process_time() < e: pass\nopen('/tmp/x', 'wb').write(x[:10 << 20])"
    agent.spawn(2, keeper.spec(*PYTHON, program))
    end = agent.wait_end(2)
    assert end["status"] == 0
    assert end["peak_memory_bytes"] > 50 << 20
    assert end["cpu_ns"] > 200_000_000
    assert end["written_bytes"] >= 10 << 20


def test_what_is_left_in_shared_memory_counts_against_nobody_later(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    """Without isolation such a slot has to be retired: files in memory stay charged to it."""
    run(keeper, agent, "head -c 20000000 /dev/zero >/dev/shm/left")
    group = "memory" in str(groups_of(keeper))
    for _ in range(3):
        agent_end = end_of(keeper, agent, "true")
        assert not group or agent_end["peak_memory_bytes"] < 10 << 20


def end_of(keeper: KeeperProcess, agent: BareAgent, script: str) -> dict[str, Any]:
    run(keeper, agent, script)
    return agent.ends[max(agent.ends)]


def test_the_keeper_limits_a_tasks_devices_by_a_control_group(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    if hierarchies.find_devices_tree() is None:
        pytest.skip("no v1 devices cgroup")
    agent.spawn(1, keeper.spec("cat"))
    pid = agent.wait_started(1)
    groups = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    path = next(line.split(":")[2] for line in groups if ":devices:" in line)
    allowed = Path("/sys/fs/cgroup/devices" + path, "devices.list").read_text().splitlines()
    assert "a *:* rwm" not in allowed
    assert {"c 1:3 rw", "c 136:* rw"} <= set(allowed)
    assert not [line for line in allowed if line.startswith("b") or "m" in line.split()[-1]]


# -- a shared runner


def test_a_shared_keeper_starts_nothing_that_has_no_owner(tmp_path: Path, workspace: Path) -> None:
    keeper = KeeperProcess(tmp_path / "runner", shared=True)
    try:
        agent = keeper.connect()
        agent.spawn(1, keeper.spec("true"))
        end = agent.wait_end(1)
        assert "it is shared, and the task does not say whose it is" in end["message"]
        agent.spawn(2, keeper.spec("true", isolation=owner(ALICE, workspace)))
        assert agent.wait_end(2)["status"] == 0
    finally:
        keeper.end()


def test_many_isolated_tasks_at_once_are_each_told_of(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    specs = {attempt: keeper.shell(f"echo {attempt}; exit {attempt}") for attempt in range(1, 31)}
    for attempt, spec in specs.items():
        agent.spawn(attempt, spec)
    for attempt, spec in specs.items():
        assert os.waitstatus_to_exitcode(agent.wait_end(attempt)["status"]) == attempt
        assert output(spec) == b"%d\n" % attempt
    until(lambda: not list((keeper.folder / "private").iterdir()), "temporary folders to go")
    until(lambda: len(keeper.leaders()) <= 4, "leaders to go")


def test_a_large_environment_and_a_command_beside_it_at_once(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    large = b"PATH=/usr/bin:/bin" + b"".join(
        b"\0V%d=" % each + bytes([120]) * 100_000 for each in range(10)
    )
    agent.spawn(1, keeper.spec("cat", environment=large))
    agent.spawn(2, beside(keeper, "exit 6"))
    assert os.waitstatus_to_exitcode(agent.wait_end(2)["status"]) == 6
    agent.send(frames.EOF, 1, at=0)
    assert agent.wait_end(1)["status"] == 0
