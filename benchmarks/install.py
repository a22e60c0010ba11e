"""Updraft as users have it: a plain install in a virtual environment, and instances of its own.

An editable install is not measured: it finds its modules in another way, and its start is slower.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.report import BenchmarkError
from benchmarks.scratch import plain_environment
from benchmarks.timing import Command, seconds_of

REPOSITORY = Path(__file__).resolve().parent.parent
_INSTALL_SECONDS = 900
_STOP_SECONDS = 60
_UNWANTED_IN_PIP = ("PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE", "VIRTUAL_ENV")
"""The caller's settings reach pip (an index, a proxy), but not those that change what it makes."""


@dataclass(frozen=True)
class Installation:
    """A virtual environment with Updraft in it."""

    folder: Path

    @property
    def python(self) -> str:
        return str(self.folder / "bin" / "python")

    def script(self, name: str) -> str:
        """The full path of one of the commands, such as `urun`."""
        return str(self.folder / "bin" / name)

    def version(self) -> str:
        code = "from importlib.metadata import version; print(version('updraft-cloud'))"
        done = subprocess.run(
            [self.python, "-c", code], capture_output=True, text=True, check=False
        )
        return done.stdout.strip() or "unknown"


def existing_installation(folder: Path) -> Installation:
    """Updraft in an environment that somebody else made; it must not be an editable install."""
    found = Installation(folder.absolute())
    if not os.access(found.script("urun"), os.X_OK):
        raise BenchmarkError(
            f"{folder} has no bin/urun; install Updraft there: {folder}/bin/pip install ."
        )
    code = (
        "import json; from importlib.metadata import distribution as d; "
        "t = d('updraft-cloud').read_text('direct_url.json'); "
        "print(bool(t and json.loads(t).get('dir_info', {}).get('editable')))"
    )
    done = subprocess.run([found.python, "-c", code], capture_output=True, text=True, check=False)
    if done.stdout.strip() == "True":
        raise BenchmarkError(
            f"{folder} has an editable install; measure a plain one: {folder}/bin/pip install ."
        )
    return found


def make_installation(folder: Path, source: str) -> Installation:
    """A new virtual environment in `folder`, with what `pip install SOURCE` brings. Slow."""
    caller = {name: value for name, value in os.environ.items() if name not in _UNWANTED_IN_PIP}
    made = Installation(folder)
    _run(
        ["sh", str(REPOSITORY / "tools" / "make-venv"), str(folder)],
        {**caller, "PYTHON": sys.executable},
    )
    pip = [made.python, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    _run([*pip, "install", "-qq", "--no-warn-script-location", source], caller)
    if not os.access(made.script("urun"), os.X_OK):
        raise BenchmarkError(f"`pip install {source}` brought no executable `urun`")
    return made


@dataclass(frozen=True)
class Pids:
    """The background processes of one machine."""

    server: int
    keeper: int
    agent: int

    def named(self) -> tuple[tuple[str, int], ...]:
        return ("server", self.server), ("agent", self.agent), ("keeper", self.keeper)


@dataclass(frozen=True)
class Instance:
    """A server and a runner with a state folder of their own. They start with the first `urun`."""

    installation: Installation
    home: Path
    env: Mapping[str, str] = field(repr=False)

    def urun(self, *arguments: str) -> Command:
        """`urun ARGUMENTS…` of this instance."""
        return Command(
            " ".join(["urun", *(Path(argument).name for argument in arguments)]),
            (self.installation.script("urun"), *arguments),
            self.env,
        )

    def warm_up(self, launches: int = 5) -> None:
        """Starts the background processes, and lets first-time costs be paid."""
        for _ in range(launches):
            seconds_of(self.urun("true"))

    def pids(self) -> Pids:
        status = self._updraft("status", "--json")
        try:
            seen = json.loads(status.stdout)
            return Pids(
                int(seen["server"]["pid"]),
                int(seen["runner"]["pid"]),
                int(seen["runner"]["agent_pid"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise BenchmarkError(
                f"`updraft status --json` names no processes: {_last_line(status)}"
            ) from error

    def stop(self) -> None:
        """Ends the background processes, and whatever still runs in them."""
        stopped = self._updraft("stop", "--cancel")
        if stopped.returncode != 0:
            print(f"`updraft stop --cancel` failed: {_last_line(stopped)}", file=sys.stderr)

    def _updraft(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                [self.installation.script("updraft"), *arguments],
                env=self.env,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                timeout=_STOP_SECONDS,
            )
        except subprocess.TimeoutExpired as error:
            raise BenchmarkError(
                f"`updraft {arguments[0]}` did not end in {_STOP_SECONDS} s"
            ) from error


@contextmanager
def fresh_instance(installation: Installation, folder: Path) -> Iterator[Instance]:
    """An instance that has never run, with its state in `folder`, stopped at the end."""
    folder.mkdir(mode=0o700)
    env = {**plain_environment(), "UPDRAFT_HOME": str(folder)}
    # As when the environment is activated: commands find its interpreter first.
    env["PATH"] = f"{installation.folder / 'bin'}{os.pathsep}{env['PATH']}"
    instance = Instance(installation, folder, env)
    try:
        yield instance
    finally:
        instance.stop()


def _run(argv: list[str], env: Mapping[str, str]) -> None:
    try:
        done = subprocess.run(
            argv,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_INSTALL_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise BenchmarkError(f"`{' '.join(argv)}` did not end in {_INSTALL_SECONDS} s") from error
    if done.returncode != 0:
        raise BenchmarkError(f"`{' '.join(argv)}` failed: {_last_line(done)}")


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return lines[-1] if lines else f"exit code {done.returncode}"
