"""load: a team's server with a thousand runners, hundreds of followers and many submissions.

The runners are real agents over TLS with keepers that only pretend, in one process of their own;
one more runner is whole, for `urun true`. Everything is on this machine, and shares its cores.
"""

import json
import os
import socket
import statistics
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import process
from benchmarks.install import Installation
from benchmarks.report import Asked, BenchmarkError, Row, Table, Unit
from benchmarks.scratch import plain_environment
from benchmarks.timing import Command, seconds_of

_PROGRAMS = Path(__file__).parent / "programs"
_CONFIGURATION = """
[server]
listen = "127.0.0.1:{port}"
certificate = "self-signed"
connections_per_peer = 20000
max_connections = 20000
requests_per_second = 100000
[pools.load]
[pools.bench]
"""
_START_SECONDS = 60.0
_LAUNCHES = 40
_RATE = 200.0
_FOLLOWED = 300

_SLOWER = Asked(must=2.0, strictly=True)
_MEMORY = Asked(must=600, strictly=True)
_ACKNOWLEDGED = Asked(must=100, strictly=True)
_NONE = Asked(must=0)

_PUBLISHED = (
    Row(
        "dstack: runners, and jobs at a time",
        1000,
        Unit.COUNT,
        note="published: at least so many per server (deployment guide, 2026)",
    ),
    Row(
        "SkyPilot: followers and other requests at a time",
        17,
        Unit.COUNT,
        note="published: 8 long and 9 short ones on 4 cores and 8 GB (API server guide, 2026)",
    ),
)
"""What peers say that their servers take; not measured here."""


def run(installation: Installation, folder: Path, *, quick: bool) -> Table:
    """Needs three minutes, or one when quick."""
    agents, seconds = (200, 10.0) if quick else (1000, 60.0)
    with ExitStack() as stack:
        team = stack.enter_context(_team(installation, folder))
        idle = _launch_seconds(team)
        stack.enter_context(_agents(team, agents))
        talkers = team.submit("talk", 50, _FOLLOWED / 50)["jobs"]
        followers = stack.enter_context(_followers(team, talkers))
        # Half of the time what is asked of a busy server, half of it submissions on top of it.
        time.sleep(seconds / 4)
        loaded = _launch_seconds(team)
        memory = [team.resident_bytes()]
        submitted = team.submit("true", _RATE, seconds)
        memory.append(team.resident_bytes())
        assert followers.stdin is not None
        assert followers.stdout is not None
        followers.stdin.close()
        lines = json.loads(followers.stdout.readline())
        missed = team.log().count("is silent for")
    latencies = [1000 * latency for latency in submitted["latencies"]]
    p99 = statistics.quantiles(latencies, n=100, method="inclusive")[-1]
    lost = submitted["due"] - len(latencies)
    ratio = statistics.median(loaded) / statistics.median(idle)
    note = f"idle {1000 * statistics.median(idle):.1f} ms, over TLS, isolated where root"
    rows = (
        Row("urun true, p50, loaded over idle", ratio, Unit.RATIO, _SLOWER, note),
        Row("urun true, p50, loaded", 1000 * statistics.median(loaded), Unit.MILLISECONDS),
        Row("heartbeats missed", missed, Unit.COUNT, _NONE, f"of {agents} agents"),
        Row("server memory", max(memory) / 1e6, Unit.MB, _MEMORY),
        Row("submissions not acknowledged", lost, Unit.COUNT, _NONE, f"of {submitted['due']}"),
        Row("acknowledged, p99", p99, Unit.MILLISECONDS, _ACKNOWLEDGED),
        Row("acknowledged, p50", statistics.median(latencies), Unit.MILLISECONDS),
        Row("fewest lines that a follower got", lines[0], Unit.COUNT),
        *_PUBLISHED,
    )
    title = (
        f"{agents} agents, {_FOLLOWED} followers of a line a second, {_RATE:.0f} submissions a "
        f"second for {seconds:.0f} s"
    )
    return Table("load", title, rows)


@dataclass(frozen=True)
class _Team:
    installation: Installation
    folder: Path
    port: int
    fingerprint: str
    token: str
    server: subprocess.Popen[bytes]
    environment: Mapping[str, str]

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def client(self) -> dict[str, str]:
        """The environment of a user's commands."""
        home = str(self.folder / "client")
        own = {"UPDRAFT_URL": self.url, "UPDRAFT_TOKEN": self.token, "UPDRAFT_HOME": home}
        return {**plain_environment(), **own, "UPDRAFT_FINGERPRINT": self.fingerprint}

    def updraft(self, *arguments: str, data: str = "", home: str = "server") -> str:
        done = subprocess.run(
            [self.installation.script("updraft"), *arguments],
            env={**self.environment, "UPDRAFT_HOME": str(self.folder / home)},
            input=data,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise BenchmarkError(f"updraft {arguments[0]} {arguments[1]}: {done.stderr.strip()}")
        return done.stdout.strip()

    def program(self, name: str, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self.installation.python, str(_PROGRAMS / name), *arguments],
            env=dict(self.environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def submit(self, word: str, rate: float, seconds: float) -> dict[str, Any]:
        arguments = ("127.0.0.1", str(self.port), "load", str(rate), str(seconds), word)
        with self.program("submitters.py", *arguments) as running:
            out, _ = running.communicate(f"{self.token}\n")
        if running.returncode:
            raise BenchmarkError("not all submissions were acknowledged in time")
        found: dict[str, Any] = json.loads(out)
        return found

    def resident_bytes(self) -> int:
        return process.resident_bytes(self.server.pid)

    def log(self) -> str:
        return (self.folder / "server.log").read_text()


@contextmanager
def _team(installation: Installation, folder: Path) -> Iterator[_Team]:
    """A server for a team, with a user and one whole runner."""
    port = _free_port()
    for path in (folder, folder / "server", folder / "server" / "config"):
        path.mkdir(exist_ok=True)
        path.chmod(0o711)
    for parent in folder.parents:  # tasks of a shared runner pass through
        if parent.stat().st_uid == os.geteuid() and parent.stat().st_mode & 0o777 == 0o700:
            parent.chmod(0o711)
    (folder / "server" / "config" / "updraft.toml").write_text(_CONFIGURATION.format(port=port))
    environment = {**plain_environment(), "UPDRAFT_HOME": str(folder / "server")}
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [installation.script("updraft"), "serve"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        fingerprint = _fingerprint(folder / "server.log", server)
        team = _Team(installation, folder, port, fingerprint, "", server, environment)
        team.updraft("project", "create", "bench")
        team.updraft("user", "add", "bench")
        team.updraft("project", "members", "bench", "--add", "bench", "--role", "member")
        token = team.updraft("token", "create", "bench", "--user", "bench").splitlines()[-1]
        team = _Team(installation, folder, port, fingerprint, token, server, environment)
        join_token = team.updraft("runner", "token", "bench")
        runner = folder / "runner"
        runner.mkdir(mode=0o711)
        arguments = ("--fingerprint", fingerprint, "--name", "whole")
        team.updraft("runner", "join", team.url, *arguments, data=join_token, home="runner")
        try:
            yield team
        finally:
            _end_runner(runner)
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _fingerprint(log: Path, server: subprocess.Popen[bytes]) -> str:
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until and server.poll() is None:
        text = log.read_text()
        if "serving at" in text:
            return "sha256:" + text.partition("sha256:")[2][:64]
        time.sleep(0.05)
    raise BenchmarkError(f"the server did not start: {log.read_text()[-500:]}")


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def _end_runner(folder: Path) -> None:
    """End the whole runner's keeper and agent, which nobody else would."""
    mark = os.fsencode(folder)
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and mark in (entry / "cmdline").read_bytes():
                os.kill(int(entry.name), 9)
        except (OSError, ProcessLookupError):
            continue


@contextmanager
def _agents(team: _Team, count: int) -> Iterator[None]:
    """A thousand runners of the pool `load`."""
    folder = team.folder / "agents"
    folder.mkdir()
    token = team.updraft("runner", "token", "load")
    running = team.program("agents.py", team.url, team.fingerprint, str(count), str(folder))
    assert running.stdin is not None
    assert running.stdout is not None
    running.stdin.write(f"{token}\n")
    running.stdin.flush()
    try:
        if running.stdout.readline() != "ready\n":
            raise BenchmarkError("the agents did not all join")
        yield
    finally:
        running.kill()
        running.communicate()


@contextmanager
def _followers(team: _Team, jobs: list[str]) -> Iterator[subprocess.Popen[str]]:
    running = team.program("followers.py", "127.0.0.1", str(team.port), *jobs)
    assert running.stdin is not None
    assert running.stdout is not None
    running.stdin.write(f"{team.token}\n")
    running.stdin.flush()
    try:
        if running.stdout.readline() != "ready\n":
            raise BenchmarkError("not all followers were answered")
        yield running
    finally:
        running.kill()
        running.wait()


def _launch_seconds(team: _Team) -> list[float]:
    urun = team.installation.script("urun")
    command = Command("urun true", (urun, "-P", "bench", "true"), team.client)
    for _ in range(5):
        seconds_of(command)
    found = []
    for _ in range(_LAUNCHES):
        found.append(seconds_of(command))
        time.sleep(0.05)
    return found
