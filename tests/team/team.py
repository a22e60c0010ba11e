"""A server for a team on one host, runners and users on others, and the end of all of it.

Everybody may run what is started here, whoever they are: the checkout's interpreter may lie in
root's home, which is closed, so a virtual environment of the system's Python is put before it.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import site
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.network import FAR, LAN, Conditions, Host, Network
from tests.runner.users import python_for_others
from tests.waiting import until
from updraft import settings
from updraft.runner.keeper import hierarchies
from updraft.sdk.client import Client
from updraft.sdk.ways import LocalWay
from updraft.server.auth import certificates
from updraft.wire.access_schemas import MemberRequest, TokenRequest, UserRequest
from updraft.wire.packing import unpack_dict

__all__ = ["FAR", "LAN", "Person", "Team", "TeamRunner", "a_team"]

PORT = 7443
PYTHON = "/usr/bin/python3"
SECONDS = 30.0
CONFIGURATION = """\
[server]
default_pool = "main"
suspect_after = "{suspect_after}"
lost_after = "{lost_after}"

[pools.main]
[pools.other]
"""


@dataclass
class Person:
    """A user of the server, and the machine and account that they sit at."""

    name: str
    uid: int
    host: Host
    commands: Path
    home: Path
    environment: Mapping[str, str]

    def argv(self, name: str, *arguments: str) -> list[str]:
        """Return one of Updraft's commands for one's own ``Popen``, with ``environment``."""
        return self.host.command(
            [str(self.commands / name), *arguments], cwd=self.home, uid=self.uid
        )

    @contextmanager
    def popen(
        self, name: str, *arguments: str, **options: Any
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Start a command, for a ``with`` block; what goes wrong there ends it."""
        usual: dict[str, Any] = {
            "stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE,
        }  # fmt: skip
        argv = self.argv(name, *arguments)
        with subprocess.Popen(argv, env=self.environment, **(usual | options)) as process:
            try:
                yield process
            except BaseException:
                process.kill()
                raise

    def run(
        self, name: str, *arguments: str, data: bytes | None = None, timeout: float = SECONDS
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command to its end."""
        given: dict[str, Any] = {"stdin": subprocess.DEVNULL} if data is None else {"input": data}
        return subprocess.run(
            self.argv(name, *arguments),
            env=self.environment,
            capture_output=True,
            timeout=timeout,
            check=False,
            **given,
        )

    def said(self, name: str, *arguments: str, timeout: float = SECONDS) -> str:
        """Run a command that must succeed; return its output."""
        done = self.run(name, *arguments, timeout=timeout)
        assert done.returncode == 0, (name, *arguments, done.returncode, done.stdout, done.stderr)
        return done.stdout.decode().strip()


@dataclass
class TeamRunner:
    """A runner on a host of its own."""

    name: str
    host: Host
    home: Path

    @property
    def folder(self) -> Path:
        """The runner's own folder."""
        return next(self.home.glob("state/*/runners/*"))

    def processes(self, role: str) -> list[int]:
        """Return the ids of its ``agent`` or ``keeper``."""
        wanted = f"updraft.runner.{role}".encode()
        return [
            pid
            for pid, words in processes_of(self.home)
            if wanted in words[:5] and (role != "keeper" or _name_of(pid) == "updraft-keeper")
        ]

    def signal(self, role: str, number: int) -> int:
        """Signal its agent or keeper; return how many there were."""
        return sum(self.signal_one(pid, number) for pid in self.processes(role))

    @staticmethod
    def signal_one(pid: int, number: int) -> bool:
        """Signal a process of its own; False where it has ended."""
        return _signal(pid, number)

    def log(self) -> str:
        """What it said."""
        return (self.folder / "runner.log").read_text()


@dataclass
class Team:
    """The server and all around it; ``a_team`` makes one."""

    network: Network
    folder: Path
    commands: Path
    lost_after: str
    suspect_after: str
    runners: dict[str, TeamRunner] = field(default_factory=dict)
    people: dict[str, Person] = field(default_factory=dict)
    server: subprocess.Popen[bytes] | None = None

    # -- the server

    @property
    def server_home(self) -> Path:
        """Its ``UPDRAFT_HOME``."""
        return self.folder / "server"

    @property
    def folders(self) -> settings.Folders:
        """The server's folders."""
        return settings.folders({"UPDRAFT_HOME": str(self.server_home)})

    def prepare(self, conditions: Conditions = LAN, *, emulated: bool | None = None) -> None:
        """Make the server's host, and start it."""
        self.network.host("server", conditions, emulated=emulated)
        config = self.server_home / "config"
        config.mkdir(parents=True)
        text = CONFIGURATION.format(suspect_after=self.suspect_after, lost_after=self.lost_after)
        (config / "updraft.toml").write_text(text)
        self.start_server()

    def start_server(self) -> None:
        """Start the server, and wait until it serves."""
        host = self.network["server"]
        with (self.folder / "server.log").open("ab") as log:
            self.server = host.popen(
                [self.commands / "updraft", "serve", "--listen", f"{host.address}:{PORT}",
                 "--self-signed"],
                cwd="/",
                env=_environment(self.server_home),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )  # fmt: skip

        def serves() -> bool:
            assert self.server is not None
            assert self.server.poll() is None, self.server_log()
            return bool(self.admin(lambda client: client.running()))

        until(serves, "the server", SECONDS)

    def kill_server(self) -> None:
        """Kill the server, and wait for its end."""
        assert self.server is not None
        self.server.kill()
        self.server.wait()

    def server_log(self) -> str:
        """What the server said."""
        return (self.folder / "server.log").read_text()

    def admin(self, ask: Any) -> Any:
        """Ask the server as who owns it: files, and so its own socket, are the machine's."""
        with Client(LocalWay(self.folders, start=False), start=False) as client:
            return ask(client)

    def fingerprint(self) -> str:
        """The server's certificate."""
        return certificates.fingerprint(str(Path(self.folders.state, "server.crt")))

    @property
    def url(self) -> str:
        """Where everybody finds the server."""
        return f"https://{self.network['server'].address}:{PORT}"

    # -- users

    def person(self, name: str, uid: int, host: Host) -> Person:
        """Make a user of the server who sits at a host, as ``uid`` there."""

        def make(client: Client) -> str:
            client.access.add_user(UserRequest(name=name))
            client.access.set_member("default", name, MemberRequest())
            made = client.access.create_token(TokenRequest(name="test", user=name))
            return str(made.token)

        token = self.admin(make)
        home = self.folder / f"home-{name}"
        home.mkdir()
        home.chmod(0o755)
        os.chown(home, uid, uid)
        environment = _environment(home) | {
            "UPDRAFT_URL": self.url,
            "UPDRAFT_TOKEN": token,
            "UPDRAFT_FINGERPRINT": self.fingerprint(),
        }
        person = Person(name, uid, host, self.commands, home, environment)
        self.people[name] = person
        return person

    # -- runners

    def runner(
        self, host: Host, *, pool: str = "main", uid: int = 0, serves: str = ""
    ) -> TeamRunner:
        """Let a host join a pool, as ``uid``."""
        home = self.folder / host.name
        home.mkdir()
        home.chmod(0o755)
        os.chown(home, uid, uid)
        token = self.admin(lambda client: client.fleet.make_join_token(pool, 600.0).token)
        for_whom = ["--serves", serves] if serves else []
        host.run(
            [self.commands / "updraft", "runner", "join", self.url, "--name", host.name,
             "--fingerprint", self.fingerprint(), *for_whom],
            cwd="/",
            uid=uid,
            env=_environment(home),
            input=token,
        )  # fmt: skip
        runner = self.runners[host.name] = TeamRunner(host.name, host, home)
        return runner

    def states(self) -> dict[str, str]:
        """The state of each runner, as the server has it."""
        listed = self.admin(lambda client: client.fleet.runners())
        return {runner.name: runner.state for runner in listed}

    def wait_ready(self, *names: str, seconds: float = SECONDS) -> None:
        """Wait until runners (all, unless named) take tasks."""
        wanted = names or tuple(self.runners)
        until(
            lambda: all(self.states().get(name) == "ready" for name in wanted),
            f"runners {wanted}",
            seconds,
        )

    # -- the end

    def end(self) -> None:
        """End all that was started; nothing may be left."""
        groups = [group for runner in self.runners.values() for group in _groups(runner)]
        if self.server is not None:
            self.server.kill()
            self.server.wait()
        # Keepers and agents bring each other back: stopped first, so that none sees another end.
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid, _ in processes_of(self.folder):
                _signal(pid, number)
        until(lambda: not list(processes_of(self.folder)), "the end of all processes")
        until(lambda: all(hierarchies.clear(group) for group in groups), "the groups to go")


@contextmanager
def a_team(
    seed: int = 7,
    *,
    suspect_after: str = "30s",
    lost_after: str = "45s",
    conditions: Conditions = LAN,
    emulated: bool | None = None,
) -> Iterator[Team]:
    """Return a team with a server for a ``with`` block; ``conditions`` are of its server's link."""
    # Where the users of isolated tasks may pass, and not in /tmp, which their tasks have their own.
    folder = Path(tempfile.mkdtemp(prefix="updraft-team-", dir="/var/lib"))
    folder.chmod(0o711)
    try:
        commands = _commands_for_all(folder / "venv")
        with Network(seed) as network:
            team = Team(network, folder, commands, lost_after, suspect_after)
            try:
                team.prepare(conditions, emulated=emulated)
                yield team
            finally:
                team.end()
    finally:
        shutil.rmtree(folder)


def unavailable() -> str | None:
    """Why there can be no team here, where there can be a network."""
    if not python_for_others():
        return "needs a Python that users may run"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if not _open_to_all(sys.executable) and _version_of(PYTHON) != version:
        return f"needs {PYTHON} to be Python {version}, since users cannot run {sys.executable}"
    return None


def processes_of(home: Path) -> Iterator[tuple[int, list[bytes]]]:
    """Yield the processes whose ``UPDRAFT_HOME`` is this folder or below it."""
    mark = b"UPDRAFT_HOME=" + os.fsencode(home)
    for entry in (path.name for path in Path("/proc").iterdir()):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            environ = Path(f"/proc/{entry}/environ").read_bytes().split(b"\0")
            words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if any(each == mark or each.startswith(mark + b"/") for each in environ):
            yield int(entry), words


def memory_of(pid: int) -> int:
    """Return the most memory that a process has had (bytes)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"process {pid} tells no VmHWM")


# -- inside


def _environment(home: Path) -> dict[str, str]:
    return {
        "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
        "LANG": "C.UTF-8",
        "HOME": str(home),
        "UPDRAFT_HOME": str(home),
    }


def _commands_for_all(folder: Path) -> Path:
    """Return a folder with Updraft's commands, which all users may run."""
    own = Path(sys.executable).parent
    if _open_to_all(sys.executable):
        return own
    subprocess.run([PYTHON, "-m", "venv", "--without-pip", folder], check=True, timeout=60)
    packages = next(folder.glob("lib/python3*/site-packages"))
    lines = [f"import site; site.addsitedir({path!r})\n" for path in site.getsitepackages()]
    (packages / "tested.pth").write_text("".join(lines))
    for name in ("updraft", "urun", "ubatch"):
        _, _, rest = (own / name).read_text().partition("\n")
        made = folder / "bin" / name
        made.write_text(f"#!{folder}/bin/python3\n{rest}")
        made.chmod(0o755)
    return folder / "bin"


def _open_to_all(path: str) -> bool:
    return python_for_others() == path


def _version_of(python: str) -> str:
    asked = [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _groups(runner: TeamRunner) -> Sequence[str]:
    try:
        record = unpack_dict((runner.folder / "cgroups").read_bytes())
    except (OSError, StopIteration):
        return []
    groups: list[str] = record["groups"]
    return groups


def _name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _signal(pid: int, number: int) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def wait_for_line(process: subprocess.Popen[bytes], line: bytes, seconds: float = SECONDS) -> None:
    """Read a process's output until this line comes."""
    assert process.stdout is not None
    deadline = time.monotonic() + seconds
    read = b""
    while read != line:
        left = max(0.0, deadline - time.monotonic())
        # Unbuffered, byte by byte: what follows is for who reads next.
        assert select.select([process.stdout], [], [], left)[0], f"did not say {line!r}: {read!r}"
        byte = os.read(process.stdout.fileno(), 1)
        assert byte, f"ended before it said {line!r}: {read!r}"
        read = byte if read.endswith(b"\n") else read + byte
