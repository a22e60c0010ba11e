"""P10: bad input gets one clear line and exit code 125, and changes nothing."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lifecycle.looking import jobs, kept, one_line
from updraft.testing.instance import Instance
from updraft.wire.sockets import listen_unix

BAD_FLAGS = [
    pytest.param(("-P", "nowhere"), ("nowhere", "local"), id="unknown-pool"),
    pytest.param(("--memory", "12Q"), ("--memory", "12Q", "512M"), id="memory-unit"),
    pytest.param(("--memory", "9999T"), ("--memory",), id="more-memory-than-there-is"),
    pytest.param(("--cpus", "4096"), ("--cpus",), id="more-cpus-than-there-are"),
    pytest.param(("--gpus", "99"), ("--gpus",), id="more-gpus-than-there-are"),
    pytest.param(("--cpus", "many"), ("--cpus", "many"), id="cpus"),
    pytest.param(("--time", "0"), ("--time",), id="no-time"),
    pytest.param(("--time", "soon"), ("--time", "soon", "90s"), id="time"),
    pytest.param(("--retries", "-1"), ("--retries", "-1"), id="retries"),
    pytest.param(("--keep-alive", "x"), ("--keep-alive",), id="keep-alive"),
    pytest.param(("-C", "/no/such/place"), ("--directory", "/no/such/place"), id="directory"),
    pytest.param(("-C", "/etc/passwd"), ("--directory", "/etc/passwd"), id="directory-is-a-file"),
    pytest.param(("-l", "colour"), ("colour", "KEY=VALUE"), id="label"),
    pytest.param(("-e", "NOT_SET_ANYWHERE"), ("NOT_SET_ANYWHERE",), id="variable"),
    pytest.param(("-n", "a\nb"), ("name",), id="name"),
    pytest.param(("--frobnicate",), ("--frobnicate", "--help"), id="flag"),
]

BAD_CONFIGURATIONS = [
    pytest.param("[server\n", "TOML", id="not-toml"),
    pytest.param("[server]\nidle_stopp = '1s'\n", "idle_stopp", id="unknown-key"),
    pytest.param("[sever]\nidle_stop = '1s'\n", "sever", id="unknown-table"),
    pytest.param("idle_stop = '1s'\n", "idle_stop", id="key-outside-its-table"),
    pytest.param("server = 3\n", "server", id="no-table"),
    pytest.param("[server]\nidle_stop = 'soon'\n", "server.idle_stop", id="no-duration"),
    pytest.param("[server]\nidle_stop = 0\n", "server.idle_stop", id="no-time-at-all"),
    pytest.param("[server]\nidle_stop = true\n", "server.idle_stop", id="true"),
    pytest.param("[server]\nretention_size = '12Q'\n", "server.retention_size", id="no-size"),
    pytest.param("[server]\noutput_quota = 0\n", "server.output_quota", id="no-quota"),
    pytest.param(b"[server]\nidle_stop = '\xff'\n", "UTF-8", id="not-utf-8"),
]


@pytest.mark.parametrize("program", ["urun", "ubatch"])
@pytest.mark.parametrize(("flags", "named"), BAD_FLAGS)
def test_a_bad_flag_is_named_in_one_line_and_changes_nothing(
    program: str, flags: tuple[str, ...], named: tuple[str, ...], shared: Instance
) -> None:
    if program == "ubatch" and flags[0] == "--keep-alive":
        pytest.skip("urun's own")
    before = kept(shared)
    said = one_line(shared.run(program, *flags, "true"))
    assert said.startswith(f"{program}: ")
    for word in named:
        assert word in said
    assert kept(shared) == before


@pytest.mark.parametrize(
    "words", [pytest.param((), id="none"), pytest.param(("--shell", "true", "x"), id="two")]
)
def test_no_command_or_two_of_them_are_refused(words: tuple[str, ...], shared: Instance) -> None:
    before = kept(shared)
    one_line(shared.run("urun", *words))
    assert kept(shared) == before


def test_a_request_that_is_too_large_is_refused_by_the_first_call_too(own: Instance) -> None:
    """Nobody knows yet what the machine has: the first call waits for the one who does."""
    assert "--cpus" in one_line_after_start(own.run("urun", "--cpus", "4096", "true"))
    assert jobs(own) == []


def test_a_directory_that_is_gone_is_told_in_one_line(shared: Instance, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    before = kept(shared)
    command = f'cd {gone} && rmdir {gone} && exec "$0" true'
    result = subprocess.run(
        ["sh", "-c", command, *shared.command("urun")],
        env=shared.environment,
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert "directory" in one_line(result)
    assert kept(shared) == before


@pytest.mark.parametrize(("text", "named"), BAD_CONFIGURATIONS)
def test_a_bad_configuration_is_told_in_one_line_and_starts_nothing(
    text: str | bytes, named: str, own: Instance
) -> None:
    path = configure(own, text)
    said = one_line(own.run("urun", "true"))
    assert str(path) in said
    assert named in said
    assert own.processes() == []
    assert not (own.home / "state").exists()


def test_an_unreadable_configuration_is_told_in_one_line_and_starts_nothing(own: Instance) -> None:
    path = configure(own, "")
    if os.geteuid() == 0:  # who may read everything: a folder is as unreadable
        path.unlink()
        path.mkdir()
    else:
        path.chmod(0)
    said = one_line(own.run("urun", "true"))
    assert str(path) in said
    assert own.processes() == []
    assert not (own.home / "state").exists()


def test_a_mended_configuration_is_taken_by_the_next_call(own: Instance) -> None:
    configure(own, "[server]\nidle_stop = 'soon'\n")
    one_line(own.run("urun", "true"))
    configure(own, "[server]\nidle_stop = '10m'\n")
    assert own.run("urun", "true").returncode == 0


@pytest.mark.parametrize("kind", ["socket", "file", "symlink", "fifo"])
def test_a_dead_socket_file_is_replaced(kind: str, running: Instance) -> None:
    path = running.state / "server.sock"
    assert running.run("updraft", "stop").returncode == 0
    make_dead(path, kind)
    result = running.run("urun", "echo", "hi")
    assert (result.returncode, result.stdout) == (0, b"hi\n")


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda home: home.write_text(""), id="file"),
        pytest.param(lambda home: home.symlink_to(home), id="loop"),
        pytest.param(lambda home: home.symlink_to("/no/such/place"), id="dangling"),
    ],
)
def test_a_home_that_is_no_folder_is_told_in_one_line(
    make: Callable[[Path], None], own: Instance, tmp_path: Path
) -> None:
    home = tmp_path / "no-folder"
    make(home)
    own.environment["UPDRAFT_HOME"] = str(home)
    said = one_line(own.run("urun", "true"))
    own.environment["UPDRAFT_HOME"] = str(own.home)
    assert str(home) in said


def test_a_name_too_long_for_the_system_is_told_in_one_line(own: Instance, tmp_path: Path) -> None:
    own.environment["UPDRAFT_HOME"] = str(tmp_path / ("x" * 300))
    said = one_line(own.run("urun", "true"))
    own.environment["UPDRAFT_HOME"] = str(own.home)
    assert "xxx" in said


def test_a_home_that_cannot_be_written_is_told_in_one_line(own: Instance) -> None:
    # Where nobody may write, root included.
    own.environment["UPDRAFT_HOME"] = "/proc/updraft"
    said = one_line(own.run("urun", "true"))
    own.environment["UPDRAFT_HOME"] = str(own.home)
    assert "UPDRAFT_HOME" in said


def test_a_read_only_state_folder_is_told_in_one_line(own: Instance) -> None:
    if os.geteuid() == 0:
        pytest.skip("root writes everywhere")
    assert own.run("urun", "true").returncode == 0
    assert own.run("updraft", "stop").returncode == 0
    own.state.chmod(0o500)
    own.home.joinpath("state").chmod(0o500)
    try:
        # Our own folder is made private again, but not writable: somebody has meant it.
        assert "UPDRAFT_HOME" in one_line(own.run("urun", "true"))
    finally:
        own.home.joinpath("state").chmod(0o700)
        own.state.chmod(0o700)


def one_line_after_start(result: subprocess.CompletedProcess[bytes]) -> str:
    """As ``one_line``, where the call has started the server and said so."""
    first, _, rest = result.stderr.partition(b"\n")
    assert b"started a server" in first
    return one_line(
        subprocess.CompletedProcess(result.args, result.returncode, result.stdout, rest)
    )


def configure(own: Instance, text: str | bytes) -> Path:
    path = own.home / "config" / "updraft.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def make_dead(path: Path, kind: str) -> None:
    path.unlink(missing_ok=True)
    if kind == "socket":
        listen_unix(str(path)).close()
    elif kind == "file":
        path.write_text("not a socket")
    elif kind == "symlink":
        path.symlink_to("/no/such/place")
    else:
        os.mkfifo(path)
