"""A server that survives its machine: killed, with its database, under load, and nobody notices.

Two servers of one database and one data folder, on one address that the second takes over, as a
virtual IP would move between machines; a runner and clients that come over TLS.
"""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from tests import postgresql
from tests.chaos.program import exit_code_of, output_of
from tests.postgresql import Cluster
from tests.waiting import until
from updraft.server.auth import certificates
from updraft.testing.instance import Instance

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.postgresql]

PROGRAM = Path(__file__).parents[1] / "chaos" / "program.py"
JOBS = 60
TAKE_OVER_SECONDS = 10.0


class Team:
    """Homes of two servers, a runner and a client."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        self.cluster = cluster
        self.folder = folder
        self.database = cluster.url(cluster.make_database())
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"https://127.0.0.1:{self.port}"
        (folder / "data").mkdir()
        (folder / "certificates").mkdir()
        certificate, key = certificates.ensure_self_signed(
            str(folder / "certificates"), "127.0.0.1"
        )
        self.fingerprint = certificates.fingerprint(certificate)
        self.servers = [self._server(name, certificate, key) for name in ("first", "second")]
        self.processes: list[subprocess.Popen[bytes]] = []
        self.runner = Instance(folder / "runner")
        self.client = Instance(folder / "client")

    def _server(self, name: str, certificate: str, key: str) -> Instance:
        made = Instance(self.folder / name)
        config = made.home / "config"
        config.mkdir(mode=0o700)
        file = config / "updraft.toml"
        file.write_text(
            f"""
[server]
listen = "127.0.0.1:{self.port}"
certificate = "{certificate}"
key = "{key}"
database = "{self.database}"
data = "{self.folder / "data"}"
[pools.main]
"""
        )
        file.chmod(0o600)
        return made

    def serve(self, which: int) -> subprocess.Popen[bytes]:
        own = self.servers[which]
        with (own.home / "log").open("ab") as log:
            process = subprocess.Popen(
                own.command("updraft", "serve"), env=own.environment,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        self.processes.append(process)
        return process

    def readiness(self, which: int) -> tuple[int, str]:
        """What a server says of itself on its own socket; 0 when it is not there."""
        return self._ask(which, "/readyz")

    def _ask(self, which: int, path: str) -> tuple[int, str]:
        try:
            place = next((self.servers[which].home / "state").iterdir()) / "server.sock"
            with socket.socket(socket.AF_UNIX) as asking:
                asking.settimeout(5)
                asking.connect(str(place))
                asking.sendall(
                    f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
                )
                answer = b"".join(iter(lambda: asking.recv(4096), b""))
        except (OSError, StopIteration):
            return 0, ""
        return (int(answer.split()[1]) if answer else 0), answer.decode()

    def wait_ready(self, which: int, seconds: float = 30.0) -> None:
        until(
            lambda: self.readiness(which)[0] == 200, f"server {which}: {self.log(which)}", seconds
        )

    def wait_standby(self, which: int) -> None:
        until(lambda: "stands by" in self.readiness(which)[1], f"standby: {self.log(which)}", 30)
        assert self.readiness(which)[0] == 503
        assert self._ask(which, "/healthz")[0] == 200
        assert "standing by" in self.log(which)

    def log(self, which: int) -> str:
        return (self.servers[which].home / "log").read_text()[-3000:]

    def admin(self, which: int, *arguments: str, data: bytes | None = None) -> str:
        done = self.servers[which].run("updraft", *arguments, data=data)
        assert done.returncode == 0, done.stderr
        return done.stdout.decode().strip()

    def join(self) -> None:
        """A user with a token, and a runner that serves them."""
        self.admin(0, "user", "add", "anna", "--stdin", data=b"correct horse battery\n")
        self.admin(0, "project", "members", "default", "--add", "anna", "--role", "member")
        token = self.admin(0, "token", "create", "test", "--user", "anna").splitlines()[0]
        joining = self.admin(0, "runner", "token", "main").splitlines()[0]
        done = self.runner.run(
            "updraft", "runner", "join", self.url, "--fingerprint", self.fingerprint, "--serves",
            "anna", "--name", "r1", data=joining.encode() + b"\n",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        self.client.environment |= {
            "UPDRAFT_URL": self.url,
            "UPDRAFT_TOKEN": token,
            "UPDRAFT_FINGERPRINT": self.fingerprint,
        }

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        for own in (self.runner, *self.servers):
            until(partial(_end_all, own), "the processes' end")


def _end_all(own: Instance) -> bool:
    """End an instance's processes; whether there are none left."""
    # Keepers and agents bring each other back: stopped first, so that none sees another end.
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in own.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, number)
    return not own.processes()


@pytest.fixture
def team(tmp_path: Path) -> Iterator[Team]:
    with postgresql.cluster() as cluster:
        made = Team(tmp_path, cluster)
        try:
            yield made
        finally:
            made.close()


def call(own: Instance, *command: str) -> subprocess.CompletedProcess[bytes]:
    """Run a command, again while it finds no server to begin with: nothing is promised by then.

    Who has reached a server once comes again by itself, and is not helped here.
    """
    until_seconds = time.monotonic() + 60
    while True:
        done = own.run(*command, timeout=150)
        refused = done.returncode == 125 and b"cannot reach" in done.stderr
        if not refused or time.monotonic() > until_seconds:
            return done


def one(team: Team, folder: Path, number: int, *, attached: bool) -> str:
    """Run a job; return what is wrong with what its client saw."""
    own, program = team.client, (sys.executable, "-S", str(PROGRAM), str(folder), str(number))
    if attached:
        ran = call(own, "urun", "-q", "-I", *program)
        code, out, err = ran.returncode, ran.stdout, ran.stderr
    else:
        ran = call(own, "ubatch", *program)
        if ran.returncode != 0:
            return f"job {number} was not taken: {ran.stderr!r}"
        job = ran.stdout.decode().strip()
        code = call(own, "updraft", "job", "wait", job).returncode
        out = call(own, "updraft", "logs", job, "--stdout").stdout
        err = call(own, "updraft", "logs", job, "--stderr").stderr
    about = f"job {number} ({'attached' if attached else 'left'})"
    if code != exit_code_of(number):
        return f"{about} ended with {code}: {err[-300:]!r}"
    if (out, err) != (output_of(number, "stdout"), output_of(number, "stderr")):
        return f"{about} wrote {len(out)} and {len(err)} bytes: {err[-200:]!r}"
    lines = (folder / str(number)).read_text().splitlines()
    if len(lines) != len(set(lines)) or len(lines) != 1:
        return f"{about} ran as {lines}"
    return ""


def count(folder: Path) -> int:
    return len(list(folder.iterdir()))


@pytest.mark.timeout(400)
def test_servers_and_database_are_killed_under_load(team: Team, tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    folder = tmp_path / "lines"
    folder.mkdir()
    first = team.serve(0)
    team.wait_ready(0)
    team.join()
    team.serve(1)
    team.wait_standby(1)
    problems: list[str] = []
    with ThreadPoolExecutor(6) as clients:
        runs = [
            clients.submit(one, team, folder, number, attached=dice.random() < 0.7)
            for number in range(JOBS)
        ]
        until(lambda: count(folder) >= JOBS // 4, "a quarter of the jobs to start", 90)
        first.kill()
        killed = time.monotonic()
        team.wait_ready(1)
        took = time.monotonic() - killed
        first.wait()
        team.serve(0)
        team.wait_standby(0)
        until(lambda: count(folder) >= JOBS // 2, "half of the jobs to start", 90)
        team.cluster.kill()
        until(lambda: team.readiness(1)[0] == 503, "the server to say that it waits")
        team.cluster.start()
        until(lambda: 200 in (team.readiness(0)[0], team.readiness(1)[0]), "a server", 30)
        problems = [problem for run in runs if (problem := run.result())]
    assert took <= TAKE_OVER_SECONDS
    assert problems == [], "\n".join([*problems, team.log(0), team.log(1)])
    stored = team.cluster.sql(
        team.database.rpartition("/")[2], "SELECT state, count(*) FROM jobs GROUP BY state"
    )
    assert stored == [("SUCCESS", JOBS)]
