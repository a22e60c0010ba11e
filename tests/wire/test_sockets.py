"""Unix sockets: long paths, private from birth, and a peer whom the kernel names."""

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from updraft.wire.sockets import as_standard, connect_unix, listen_unix, peer_uid

FOREIGN_UID = 65534


@pytest.fixture(params=["a short path", "a long path"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    folder = tmp_path
    if request.param == "a long path":
        folder = tmp_path.joinpath(*["a folder with a long name"] * 9)
        folder.mkdir(parents=True)
        assert len(os.fsencode(folder)) > 2 * 108
    return str(folder / "server.sock")


def exchange(listener: socket.socket, path: str) -> None:
    """Fail unless a connection to ``path`` reaches ``listener``."""
    with as_standard(connect_unix(path)) as client:
        server, _ = listener.accept()
        with server:
            client.sendall(b"hello")
            assert server.recv(5) == b"hello"
            assert peer_uid(server) == peer_uid(client) == os.geteuid()


def test_a_socket_is_reached_whatever_the_length_of_its_path(path: str) -> None:
    before = open_descriptors()
    with listen_unix(path) as listener:
        exchange(listener, path)
    assert open_descriptors() == before


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_a_socket_is_private_and_the_umask_is_left_alone(path: str, umask: int) -> None:
    before = os.umask(umask)
    try:
        with listen_unix(path):
            mode = Path(path).stat().st_mode
            assert stat.S_ISSOCK(mode)
            assert stat.S_IMODE(mode) == 0o600
    finally:
        after = os.umask(before)
    assert after == umask


def test_the_socket_of_a_dead_server_is_refused_and_then_replaced(path: str) -> None:
    listen_unix(path).close()
    with pytest.raises(ConnectionRefusedError):
        connect_unix(path)
    with listen_unix(path) as listener:
        exchange(listener, path)


@pytest.mark.parametrize("target", ["a file", "nowhere"])
def test_what_else_lies_at_the_path_is_replaced_without_following_it(
    tmp_path: Path, target: str
) -> None:
    kept = tmp_path / "kept"
    if target == "a file":
        kept.write_text("kept")
    link = tmp_path / "server.sock"
    link.symlink_to(kept)
    with listen_unix(str(link)) as listener:
        exchange(listener, str(link))
    assert kept.exists() == (target == "a file")


def test_nobody_listens(path: str) -> None:
    before = open_descriptors()
    with pytest.raises(FileNotFoundError):
        connect_unix(path)
    with pytest.raises(FileNotFoundError):
        connect_unix(str(Path(path).parent / "no folder" / "server.sock"))
    Path(path).touch()
    with pytest.raises(ConnectionRefusedError):
        connect_unix(path)
    assert open_descriptors() == before


def test_a_folder_that_is_not_there_leaves_no_descriptor_behind(path: str) -> None:
    before = open_descriptors()
    with pytest.raises(FileNotFoundError):
        listen_unix(str(Path(path).parent / "no folder" / "server.sock"))
    assert open_descriptors() == before


@pytest.mark.root
def test_the_kernel_tells_a_foreign_peer() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        name = f"\0updraft-test-{os.getpid()}"
        listener.bind(name)
        listener.listen()
        program = (
            "import os, socket, sys\n"
            f"os.setgid({FOREIGN_UID}); os.setuid({FOREIGN_UID})\n"
            "peer = socket.socket(socket.AF_UNIX)\n"
            "peer.connect('\\0' + sys.argv[1])\n"
            "peer.recv(1)\n"
        )
        with subprocess.Popen([sys.executable, "-I", "-c", program, name[1:]]) as client:
            peer, _ = listener.accept()
            with peer:
                assert peer_uid(peer) == FOREIGN_UID
            assert client.wait(10) == 0


def open_descriptors() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}
