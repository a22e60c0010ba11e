"""Takes the server's release over a runner's own: ``python -m updraft.runner.upgrading …``.

For a runner that the line of ``updraft runner token --line`` installed, whose environment is its
own alone.  What is new is installed beside what is there, tried, and put in its place in one step:
whatever goes wrong before that changes nothing.  Processes go on meanwhile; the agent makes way
for its successor afterwards.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import http.client
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import updraft
from updraft import errors
from updraft.runner import joined
from updraft.runner.keeper.processes import libc
from updraft.wire import tls

MARK = "installed-by-its-server"
"""A file in an environment that the line made; ``server/join.sh`` writes it."""

_SILENCE_SECONDS = 60.0
_PIP_SECONDS = 600.0
_TRY_SECONDS = 120.0
_LINK = re.compile(r'^<a href="([A-Za-z0-9_][A-Za-z0-9_.+!-]*\.whl)">', re.MULTILINE)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # uapi/linux/fs.h
_TRY = """\
import sys
sys.path.insert(0, sys.argv[1])
import updraft, updraft.cli.runner_run, updraft.runner.agent.__main__, updraft.runner.keeper.keeper
sys.exit(updraft.__version__ != sys.argv[2] and f"it is release {updraft.__version__}")
"""


def hindrance() -> str:
    """Return why this runner's environment cannot be replaced; empty: it can."""
    if not Path(sys.prefix, MARK).exists():
        return (
            "it was not installed by the line of updraft runner token --line; upgrade Updraft on "
            "its machine, with what installed it, and its agent goes over to that by itself"
        )
    if not os.access(os.path.dirname(sysconfig.get_path("purelib")), os.W_OK):
        return f"its user cannot write {sys.prefix}; upgrade it on its machine as who can"
    return ""


def main(arguments: list[str]) -> int:
    """Upgrade; what went wrong is one line on stderr."""
    match arguments:
        case ["--folder", folder, release]:
            pass
        case _:
            sys.stderr.write("usage: python -m updraft.runner.upgrading --folder DIR RELEASE\n")
            return 2
    os.umask(0o022)  # as the line installed it: tasks' users read it, and the keeper's is stricter
    try:
        upgrade(joined.load(folder), release)
    except errors.UpdraftError as error:
        sys.stderr.write(f"{error.message}\n")
        return 1
    except (OSError, http.client.HTTPException, subprocess.TimeoutExpired) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def upgrade(place: joined.Joined, release: str) -> None:
    """Make this environment one of ``release``, from the wheels of the server.

    Raises ``errors.UpdraftError``, ``OSError``, ``HTTPException``, ``TimeoutExpired``.
    """
    site = Path(sysconfig.get_path("purelib"))
    new = site.with_name("site-packages.new")
    with open(Path(sys.prefix, MARK)) as mark:
        # Runners of one environment take turns; who comes second finds it done.
        fcntl.flock(mark, fcntl.LOCK_EX)
        if _installed(site) == release:
            return
        _remove(new)
        try:
            with tempfile.TemporaryDirectory() as wheels:
                fetch(place, Path(wheels))
                _install(Path(wheels), new, release)
            _try(new, release)
            _exchange(new, site)
            with contextlib.suppress(OSError):  # those that are there do with the new release
                _take_commands(site)
        finally:
            _remove(new)


def fetch(place: joined.Joined, folder: Path) -> None:
    """Get the server's wheels for this Python.  Raises ``errors.UpdraftError``, ``OSError``."""
    connection = http.client.HTTPConnection(place.host, place.port)
    peer = tls.connect(
        place.host,
        place.port,
        fingerprint=place.fingerprint,
        silence_seconds=_SILENCE_SECONDS,
        pin=place.pin,
    )
    connection.sock = peer
    try:
        for name in _LINK.findall(_get(connection, "").read().decode()):
            if _fits(name):
                answer = _get(connection, name)
                with open(folder / name, "wb") as file:
                    shutil.copyfileobj(answer, file)
    finally:
        connection.close()


def _get(connection: http.client.HTTPConnection, name: str) -> http.client.HTTPResponse:
    connection.request("GET", f"/wheels/{name}")
    answer = connection.getresponse()
    if answer.status != http.client.OK:
        raise errors.Unavailable(f"the server answered /wheels/{name} with HTTP {answer.status}")
    return answer


def _fits(name: str) -> bool:
    """Whether a wheel may be for this Python on this machine, as far as its name tells."""
    _, python, abi, platform = name.removesuffix(".whl").rsplit("-", 3)
    if platform == "any":
        return True
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    return (python == tag or abi == "abi3") and platform.endswith(f"_{os.uname().machine}")


def _install(wheels: Path, folder: Path, release: str) -> None:
    pip = next(wheels.glob("pip-*.whl"), None)
    if pip is None:
        raise errors.Unavailable("the server has no wheel of pip; mend: updraft admin wheelhouse")
    command = [sys.executable, "-I", str(pip / "pip"), "--disable-pip-version-check", "install"]
    command += [
        "--isolated",
        "--quiet",
        "--no-index",
        "--no-cache-dir",
        "--root-user-action",
        "ignore",
    ]
    command += ["--find-links", str(wheels), "--target", str(folder), f"updraft-cloud=={release}"]
    _run(command, _PIP_SECONDS, "pip")


def _try(folder: Path, release: str) -> None:
    """See that what was installed works by itself, with nothing of what is there now."""
    command = [sys.executable, "-I", "-S", "-c", _TRY, str(folder), release]
    _run(command, _TRY_SECONDS, f"release {release} does not work here")


def _run(command: list[str], seconds: float, what: str) -> None:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        said = [line for line in lines if line.startswith("ERROR")] or lines
        last = said[-1] if said else f"exit code {done.returncode}"
        raise errors.Unsupported(f"{what}: {last}")


def _exchange(new: Path, site: Path) -> None:
    """Swap two folders in one step, so that a power cut leaves one release or the other."""
    names = os.fsencode(new), os.fsencode(site)
    exchanged = libc().renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE)
    if exchanged < 0:
        why = os.strerror(ctypes.get_errno())
        raise errors.Unsupported(f"folders cannot be exchanged in {site.parent}: {why}")


def _take_commands(site: Path) -> None:
    """Put the commands that came along where commands are."""
    for command in (site / "bin").iterdir():
        if command.is_file():
            written = Path(sys.prefix, "bin", f".{command.name}.new")
            shutil.copy2(command, written)
            written.replace(written.with_name(command.name))
    _remove(site / "bin")


def _installed(site: Path) -> str:
    """Return the release that lies there, whichever runs."""
    found = re.search(r'^__version__ = "(.+)"$', (site / "updraft/__init__.py").read_text(), re.M)
    return found[1] if found else updraft.__version__


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
