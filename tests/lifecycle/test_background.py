"""Nothing of whoever happens to start the background processes stays with them."""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.lifecycle.looking import (
    another,
    descriptors_of,
    environment_of,
    is_alive,
    kill,
    only,
    session_of,
    stat_field,
    status_field,
    terminal_of,
)
from tests.waiting import until, wait_gone
from updraft import settings
from updraft.testing.instance import Instance

STARTER = Path(__file__).with_name("starter.py")
LAUNCHER = Path(__file__).parents[1] / "fidelity" / "launch.py"
MAY_HAVE = {"PATH", "LC_ALL", settings.BACKGROUND_MARK, *settings.KEPT_ENVIRONMENT}
# What Python ignores from its start on, to raise an error instead, and the C library's own.
OWN_IGNORED = {signal.SIGPIPE, signal.SIGXFSZ, 32, 33}


def start(
    own: Instance, how: dict[str, Any], *words: str, **options: Any
) -> subprocess.CompletedProcess[bytes]:
    """Run ``urun WORDS`` (``true``) from an awkward starter."""
    return subprocess.run(
        [sys.executable, str(STARTER), json.dumps(how), *own.command("urun", *words or ("true",))],
        env=own.environment,
        capture_output=True,
        timeout=30,
        check=True,
        **options,
    )


def signals(mask: str) -> set[int]:
    return {number for number in range(1, 65) if int(mask, 16) >> (number - 1) & 1}


def test_descriptors_are_let_go_of(own: Instance) -> None:
    read, write = os.pipe()
    high = fcntl.fcntl(write, fcntl.F_DUPFD, 77)
    os.set_inheritable(high, True)
    subprocess.run(
        own.command("urun", "true"),
        env=own.environment,
        pass_fds=(write, high),
        capture_output=True,  # comes to its end: nobody holds these pipes either
        check=True,
        timeout=30,
    )
    os.close(write)
    os.close(high)
    assert os.read(read, 1) == b""  # nor this one
    os.close(read)
    for pid in own.processes():
        for fd, what in descriptors_of(pid).items():
            if fd <= 2:
                assert what in ("/dev/null", str(own.state / "server.log")), (fd, what)


@pytest.mark.parametrize("restarted", [False, True], ids=["started", "restarted"])
def test_credentials_do_not_stay(restarted: bool, own: Instance) -> None:
    own.environment.update(
        AWS_SECRET_ACCESS_KEY="s3cret",
        SSH_AUTH_SOCK="/tmp/agent",
        CUDA_VISIBLE_DEVICES="",
        LD_LIBRARY_PATH="/opt/lib",
        PYTHONPATH="/opt/python",
        TMPDIR="/tmp",
    )
    assert own.run("urun", "true").returncode == 0
    if restarted:
        agent, server = only(own, "agent"), only(own, "server")
        kill(agent)
        kill(server)
        another(own, "agent", agent)
        another(own, "server", server)
    roles = ("server", "agent", "keeper", "leader")
    found = {role: [environment_of(pid) for pid in own.processes(role)] for role in roles}
    assert all(found.values()), found
    for role, environments in found.items():
        for environment in environments:
            assert set(environment) <= MAY_HAVE, role
    # The command has them all, as it would have locally.
    result = own.run("urun", "printenv", "AWS_SECRET_ACCESS_KEY", "PYTHONPATH")
    assert result.stdout == b"s3cret\n/opt/python\n"


def test_session_directory_umask_and_terminal_are_their_own(own: Instance, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    start(own, {"umask": 0o000}, cwd=here)
    here.rmdir()
    for pid in own.processes():
        assert session_of(pid) != os.getsid(0)
        assert terminal_of(pid) == 0
        assert Path(f"/proc/{pid}/cwd").readlink() == Path("/")
        assert status_field(pid, "Umask") == "0077"
    for path in own.state.rglob("*"):
        assert path.lstat().st_mode & 0o077 == 0, path


def test_signals_of_the_starter_are_shed(own: Instance) -> None:
    ignored = [signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1, signal.SIGCHLD]
    blocked = [signal.SIGTERM, signal.SIGUSR2, signal.SIGCHLD, signal.SIGRTMIN + 3]
    start(own, {"ignored": ignored, "blocked": blocked})
    for role in ("server", "agent", "keeper"):
        pid = only(own, role)
        assert signals(status_field(pid, "SigBlk")) == set(), role
        assert signals(status_field(pid, "SigIgn")) <= OWN_IGNORED, role
    shown = own.run("urun", "grep", "-E", "Sig(Blk|Ign)", "/proc/self/status").stdout.decode()
    # 32 and 33 are the C library's, which lets nobody set them (GNU make leaves 32 ignored).
    assert [signals(line.split()[1]) - {32, 33} for line in shown.splitlines()] == [set(), set()]


def test_limits_of_the_starter_are_shed(own: Instance) -> None:
    start(own, {"limits": {"CPU": 5, "NOFILE": 64, "FSIZE": 1 << 20}, "one_cpu": True})
    for pid in own.processes():
        limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
        for name in ("Max cpu time", "Max open files", "Max file size"):
            (line,) = [line for line in limits if line.startswith(name)]
            soft, hard = line[len("Max resource limit      ") :].split()[:2]
            assert soft == hard, line
        assert os.sched_getaffinity(pid) == os.sched_getaffinity(0)
    # What a client limits holds for its own command only.
    shown = own.run("urun", "sh", "-c", "ulimit -Sn; ulimit -Sf").stdout
    assert shown == subprocess.check_output(["sh", "-c", "ulimit -Sn; ulimit -Sf"])
    shown = start(own, {"limits": {"NOFILE": 77}}, "sh", "-c", "ulimit -Sn").stdout
    assert shown == b"77\n"


def test_niceness_is_the_clients_whoever_started_the_runner(own: Instance) -> None:
    start(own, {"nice": 3})
    if os.geteuid() == 0:  # others cannot take it back
        assert {stat_field(pid, 18) for pid in own.processes()} == {0}
    before = os.getpriority(os.PRIO_PROCESS, 0)  # the tests may be nice themselves
    for more in (3, 5):
        nice = min(before + more, 19)
        assert start(own, {"nice": more}, "nice").stdout == b"%d\n" % nice


def test_no_process_of_the_background_is_a_child_of_the_starter(own: Instance) -> None:
    code = "import subprocess, sys, os; subprocess.run(sys.argv[1:], check=True); "
    code += "print(open(f'/proc/{os.getpid()}/task/{os.getpid()}/children').read().split())"
    result = subprocess.run(
        [sys.executable, "-c", code, *own.command("urun", "-q", "true")],
        env=own.environment,
        capture_output=True,
        timeout=30,
        check=True,
    )
    assert result.stdout == b"[]\n"
    assert own.processes("server")


@pytest.mark.parametrize("how", ["hangup", "killed"])
def test_the_end_of_the_starters_terminal_is_not_theirs(how: str, own: Instance) -> None:
    master, slave = os.openpty()
    on_terminal = [sys.executable, "-I", "-S", str(LAUNCHER), "tty"]
    shell = subprocess.Popen(
        [*on_terminal, "bash", "-c", '"$@"; sleep 60', "bash", *own.command("urun", "-q", "true")],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=own.environment,
        start_new_session=True,
    )
    os.close(slave)
    until(lambda: own.processes("agent") and sleeping(shell.pid), "urun to be over")
    pids = own.processes()
    if how == "hangup":
        os.close(master)
    else:
        os.killpg(shell.pid, signal.SIGKILL)
    shell.wait(10)
    if how == "killed":
        os.close(master)
    result = own.run("urun", "echo", "hi")
    assert (result.returncode, result.stdout, result.stderr) == (0, b"hi\n", b"")
    for role in ("server", "agent", "keeper"):
        assert only(own, role) in pids
    assert all(is_alive(pid) for pid in pids if pid in own.processes())


def test_a_started_server_outlives_its_starters_whole_session(own: Instance) -> None:
    """As CI does it: every process of the job's session and group is killed at its end."""
    job = subprocess.Popen(
        ["sh", "-c", '"$@"; exec sleep 60', "sh", *own.command("urun", "-q", "true")],
        env=own.environment,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    until(lambda: own.processes("agent") and sleeping(job.pid), "urun to be over")
    pids = {role: only(own, role) for role in ("server", "agent", "keeper")}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if session_of(int(entry.name)) == job.pid:
                    kill(int(entry.name))
    wait_gone(job.pid)
    job.wait()
    assert own.run("urun", "true").returncode == 0
    assert {role: only(own, role) for role in pids} == pids


def sleeping(pid: int) -> bool:
    """Whether a process, or its only child, has become ``sleep``."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    names = [Path(f"/proc/{each}/comm").read_text().strip() for each in (pid, *children)]
    return names[-1] == "sleep"


def test_a_configuration_named_from_where_the_starter_was_is_still_found(
    own: Instance, tmp_path: Path
) -> None:
    (tmp_path / "mine.toml").write_text("[server]\n")
    own.environment["UPDRAFT_CONFIG"] = "mine.toml"
    subprocess.run(own.command("urun", "-q", "true"), env=own.environment, cwd=tmp_path, check=True)

    server = environment_of(only(own, "server"))
    assert server["UPDRAFT_CONFIG"] == str(tmp_path / "mine.toml")
