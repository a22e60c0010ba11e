"""The first call starts one server, wherever the instance lies and whoever calls at once."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lifecycle.looking import client, is_alive, kill, mode_of, only, status
from tests.waiting import until, wait_gone
from updraft import bootstrap, errors, settings
from updraft.testing.instance import Instance

STARTED = b"started a server"

HOMES = [
    pytest.param("with spaces and 'quotes'", id="spaces"),
    pytest.param("größer/файл/文件", id="not-ascii"),
    pytest.param("what?#a=1&%41%s%(here)s", id="url-signs"),
    pytest.param("line\nbreak", id="newline"),
    pytest.param(os.fsdecode(b"not-utf-8-\xff\xfe"), id="not-utf-8"),
    pytest.param("/".join(["a-rather-long-folder-name"] * 8), id="longer-than-a-socket-path"),
]


@pytest.mark.parametrize("name", HOMES)
def test_an_instance_works_wherever_it_lies(
    name: str, make_instance: Callable[[Path], Instance], tmp_path: Path
) -> None:
    own = make_instance(tmp_path / name)
    for _ in range(2):
        result = own.run("urun", "cat", data=b"hi")
        assert (result.returncode, result.stdout) == (0, b"hi"), result.stderr
    own.kill("server")  # what the agent starts finds the place too
    result = own.run("urun", "echo", "again")
    assert (result.returncode, result.stdout) == (0, b"again\n"), result.stderr
    listed = own.run("updraft", "job", "list", "--all", "--json")
    assert listed.returncode == 0, listed.stderr


def test_ten_first_calls_at_once_make_one_server(own: Instance) -> None:
    calls = [
        subprocess.Popen(
            own.command("urun", "echo", str(number)),
            env=own.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for number in range(10)
    ]
    said = []
    for number, call in enumerate(calls):
        stdout, stderr = call.communicate(timeout=60)
        assert (call.returncode, stdout) == (0, b"%d\n" % number), stderr
        said.append(stderr)
    assert sum(STARTED in text for text in said) == 1, said
    assert [len(own.processes(role)) for role in ("server", "agent", "keeper")] == [1, 1, 1]


def test_what_a_power_cut_leaves_behind_is_in_nobodys_way(running: Instance) -> None:
    running.kill_all()
    until(lambda: not running.processes(), "all to be gone")
    # A number in a file is nobody's: not even when its process lives.
    for name in ("server.pid", "runner/keeper.pid"):
        (running.state / name).write_text(f"{os.getpid()}\n")
    result = running.run("urun", "echo", "hi")
    assert (result.returncode, result.stdout) == (0, b"hi\n")
    assert STARTED in result.stderr


def test_a_starter_that_is_killed_leaves_one_working_server(own: Instance) -> None:
    with client(own, "true") as starter:
        until(lambda: own.processes("server"), "the server to start")
        starter.kill()
    result = own.run("urun", "echo", "hi")
    assert (result.returncode, result.stdout) == (0, b"hi\n")
    assert len(own.processes("server")) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_call_that_waits_for_another_to_start_the_server_can_be_ended(
    number: signal.Signals, own: Instance
) -> None:
    folders = settings.folders(own.environment)
    bootstrap.prepare_state(folders)
    with Path(folders.start_lock).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with client(own, "true") as waiting:
            until(lambda: waits_for_lock(waiting.pid), "the call to wait for the lock")
            waiting.send_signal(number)
            assert waiting.wait(10) in (-number, 128 + number)
            assert waiting.stderr is not None
            assert waiting.stderr.read() == b""


def test_instances_side_by_side_know_nothing_of_each_other(
    make_instance: Callable[[Path], Instance], tmp_path: Path
) -> None:
    first, second = make_instance(tmp_path / "first"), make_instance(tmp_path / "second")
    for own in (first, second):
        assert own.run("urun", "-q", "true").returncode == 0
    servers = [status(own)["server"]["pid"] for own in (first, second)]
    assert servers[0] != servers[1]
    assert first.run("updraft", "stop").returncode == 0
    until(lambda: not first.processes(), "the first to be gone")
    assert only(second, "server") == servers[1]
    assert second.run("urun", "true").stderr == b""


def test_a_relative_home_is_one_place_from_everywhere(own: Instance) -> None:
    environment = {**own.environment, "UPDRAFT_HOME": own.home.name}
    command = own.command("urun", "true")
    subprocess.run(command, env=environment, cwd=own.home.parent, check=True, timeout=30)
    assert status(own)["server"]["pid"] == only(own, "server")
    below = {**own.environment, "UPDRAFT_HOME": "."}
    result = subprocess.run(
        command, env=below, cwd=own.home, capture_output=True, check=True, timeout=30
    )
    assert result.stderr == b""


def test_the_state_is_private(running: Instance) -> None:
    assert mode_of(running.state) == 0o700
    for path in running.state.rglob("*"):
        assert mode_of(path) & 0o077 == 0, path


def test_a_state_folder_open_to_others_is_made_private(own: Instance) -> None:
    state = Path(settings.folders(own.environment).state)
    state.mkdir(parents=True)
    state.chmod(0o777)
    assert own.run("urun", "true").returncode == 0
    assert mode_of(state) == 0o700


# -- homes


@pytest.fixture
def homely(own: Instance, tmp_path: Path) -> Iterator[Instance]:
    """An instance in a home folder that is not there yet; ``own`` finds its processes."""
    for name in ("UPDRAFT_HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME"):
        own.environment.pop(name, None)
    own.environment["HOME"] = str(tmp_path / "users" / "me")
    yield own
    stopped = own.run("updraft", "stop", "--cancel", timeout=60)
    own.environment["UPDRAFT_HOME"] = str(own.home)
    assert stopped.returncode == 0, stopped.stderr


def test_a_home_that_is_missing_is_made(homely: Instance) -> None:
    assert homely.run("urun", "true").returncode == 0
    home = Path(homely.environment["HOME"])
    paths = status(homely)["paths"]
    assert paths["state"].startswith(f"{home}/.local/state/updraft/")
    assert paths["config"] == f"{home}/.config/updraft/updraft.toml"


def test_folders_follow_xdg_and_pass_over_its_relative_paths(
    homely: Instance, tmp_path: Path
) -> None:
    homely.environment["XDG_STATE_HOME"] = str(tmp_path / "xdg")
    homely.environment["XDG_CONFIG_HOME"] = "relative"
    assert homely.run("urun", "true").returncode == 0
    paths = status(homely)["paths"]
    assert paths["state"].startswith(f"{tmp_path}/xdg/updraft/")
    assert paths["config"].startswith(f"{homely.environment['HOME']}/.config/")
    pids = status(homely)
    assert all(is_alive(pid) for pid in (pids["server"]["pid"], pids["runner"]["pid"]))


def test_without_home_the_system_knows_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME", raising=False)
    home = Path("~").expanduser()
    assert settings.folders({}).state.startswith(f"{home}/.local/state/updraft/")


@pytest.mark.root
def test_a_user_whom_the_system_does_not_know_has_a_local_folder(tmp_path: Path) -> None:
    uid = 54321
    folder = Path(settings.LOCAL_BASE, f"updraft-{uid}")
    assert not folder.exists()
    commands = Path(sys.executable).parent
    environment = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}

    def run(name: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [str(commands / name), *arguments],
            env=environment,
            cwd="/",
            user=uid,
            group=uid,
            extra_groups=[],
            capture_output=True,
            timeout=60,
            check=False,
        )

    try:
        result = run("urun", "id", "-u")
    except PermissionError:
        pytest.skip(f"other users may not run {commands}")
    if b"Permission denied" in result.stderr or b"not permitted" in result.stderr:
        pytest.skip(f"other users may not run {commands}: {result.stderr.decode()}")
    try:
        assert (result.returncode, result.stdout) == (0, b"%d\n" % uid), result.stderr
        assert folder.stat().st_uid == uid
        assert mode_of(folder) == 0o700
    finally:
        stopped = run("updraft", "stop", "--cancel")
        shutil.rmtree(folder)
    assert stopped.returncode == 0, stopped.stderr


# -- homes on a network


@pytest.fixture
def on_network(
    own: Instance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], settings.Folders]:
    """Pretend that ``own`` lies on a file system of some type; its local folders are the test's."""
    monkeypatch.setattr(settings, "LOCAL_BASE", str(tmp_path / "local"))

    def pretend(kind: str) -> settings.Folders:
        mounts = tmp_path / "mountinfo"
        escaped = str(own.home).replace(" ", "\\040")
        mounts.write_text(
            "21 1 252:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"
            f"22 21 0:42 / {escaped} rw,relatime shared:2 - {kind} there:/home rw\n"
        )
        monkeypatch.setattr(bootstrap, "MOUNTS", str(mounts))
        return settings.folders(own.environment)

    return pretend


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs", "lustre"])
def test_state_on_a_network_is_kept_on_a_local_disk_and_said_once(
    kind: str, own: Instance, on_network: Callable[[str], settings.Folders]
) -> None:
    folders = on_network(kind)
    said: list[str] = []
    bootstrap.prepare_state(folders, said.append)
    bootstrap.prepare_state(folders, said.append)
    local = Path(folders.state).resolve()
    assert len(said) == 1
    assert str(local) in said[0]
    assert local.is_relative_to(settings.LOCAL_BASE)
    assert mode_of(local) == mode_of(local.parent) == 0o700


def test_an_instance_whose_home_is_on_a_network_works(
    own: Instance, on_network: Callable[[str], settings.Folders]
) -> None:
    folders = on_network("nfs")
    bootstrap.prepare_state(folders)
    result = own.run("urun", "echo", "hi")
    assert (result.returncode, result.stdout) == (0, b"hi\n"), result.stderr
    assert (Path(folders.state).resolve() / "updraft.db").exists()


def test_local_state_that_somebody_cleaned_up_is_made_again(
    own: Instance, on_network: Callable[[str], settings.Folders]
) -> None:
    folders = on_network("nfs")
    bootstrap.prepare_state(folders)
    shutil.rmtree(settings.LOCAL_BASE)
    bootstrap.prepare_state(folders)
    assert Path(folders.state).is_dir()


def test_two_homes_on_a_network_have_two_local_folders(
    own: Instance, on_network: Callable[[str], settings.Folders]
) -> None:
    on_network("nfs")
    places = set()
    for name in ("a/b-c", "a-b/c"):  # once flattened these were one
        folders = settings.folders({"UPDRAFT_HOME": str(own.home / name)})
        bootstrap.prepare_state(folders)
        places.add(Path(folders.state).resolve())
    assert len(places) == 2


@pytest.mark.root
def test_a_local_folder_that_another_user_made_is_refused(
    own: Instance, on_network: Callable[[str], settings.Folders]
) -> None:
    folders = on_network("nfs")
    theirs = Path(settings.local_base())
    theirs.mkdir(parents=True)
    os.chown(theirs, 54321, 54321)
    with pytest.raises(errors.NotAllowed, match="not a folder of yours"):
        bootstrap.prepare_state(folders)
    assert not Path(folders.state).exists()


def test_a_local_disk_is_used_as_it_is(
    own: Instance, on_network: Callable[[str], settings.Folders]
) -> None:
    folders = on_network("xfs")
    bootstrap.prepare_state(folders, pytest.fail)
    assert not Path(folders.state).is_symlink()


def test_mounts_with_odd_names_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_bytes(
        b"1 0 252:0 / / rw - ext4 /dev/vda rw\n"
        b"2 1 0:42 / /srv/my\\040home rw - nfs there:/ rw\n"
        b"3 1 0:43 / /srv/\xc3\xbc\\134x rw master:1 - xfs there:/ rw\n"
        b"4 1 0:44 / /srv/my\\040home rw - btrfs over:/ rw\n"
    )
    monkeypatch.setattr(bootstrap, "MOUNTS", str(mounts))
    assert bootstrap.file_system("/srv/my home/x") == "btrfs"
    assert bootstrap.file_system("/srv/my home more") == "ext4"
    assert bootstrap.file_system("/srv/ü\\x/y") == "xfs"
    monkeypatch.setattr(bootstrap, "MOUNTS", str(tmp_path / "none"))
    assert bootstrap.file_system("/") == ""


def waits_for_lock(pid: int) -> bool:
    locks = Path("/proc/locks").read_text().splitlines()
    return any(line.split()[1] == "->" and line.split()[5] == str(pid) for line in locks)


def test_the_helpers_here_notice_the_end_of_a_process() -> None:
    process = subprocess.Popen(["sleep", "60"])
    kill(process.pid)
    wait_gone(process.pid)
    process.wait()
