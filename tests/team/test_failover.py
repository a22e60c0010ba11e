"""A server that survives its machine: killed, with its database, under load, and nobody notices.

Servers of one database and one data folder, behind a balancer that sends everybody to one of them;
a runner and clients that come over TLS.
"""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests import postgresql
from tests.chaos.program import exit_code_of, output_of
from tests.postgresql import Cluster
from tests.team.balancer import Balancer
from tests.waiting import until, wait_gone
from updraft.server.auth import certificates
from updraft.testing.instance import Instance

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.postgresql]

PROGRAM = Path(__file__).parents[1] / "chaos" / "program.py"
JOBS = 60
TAKE_OVER_SECONDS = 10.0


class Team:
    """Homes of three servers, a runner and a client; ``point_at`` says which server is found."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        self.cluster = cluster
        self.folder = folder
        self.database = cluster.url(cluster.make_database())
        self.balancer = Balancer()
        self.to_database = Balancer()
        """What lies between the first server and its database."""
        self.to_database.point_at(cluster.port)
        self.url = f"https://127.0.0.1:{self.balancer.port}"
        (folder / "data").mkdir()
        (folder / "certificates").mkdir()
        certificate, key = certificates.ensure_self_signed(
            str(folder / "certificates"), "127.0.0.1"
        )
        self.fingerprint = certificates.fingerprint(certificate)
        self.ports: list[int] = []
        names = ("first", "second", "third")
        self.servers = [self._server(name, certificate, key) for name in names]
        self.processes: list[subprocess.Popen[bytes]] = []
        self.runner = Instance(folder / "runner")
        self.client = Instance(folder / "client")

    def _server(self, name: str, certificate: str, key: str) -> Instance:
        made = Instance(self.folder / name)
        config = made.home / "config"
        config.mkdir(mode=0o700)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.ports.append(port)
        there = str(self.to_database.port if name == "first" else self.cluster.port)
        database = self.database.replace(f":{self.cluster.port}/", f":{there}/")
        file = config / "updraft.toml"
        file.write_text(
            f"""
[server]
listen = "127.0.0.1:{port}"
url = "{self.url}"
certificate = "{certificate}"
key = "{key}"
database = "{database}"
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
        """Wait until a server leads, and let everybody find it."""
        until(
            lambda: self.readiness(which)[0] == 200, f"server {which}: {self.log(which)}", seconds
        )
        self.balancer.point_at(self.ports[which])

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
        self.balancer.close()
        self.to_database.close()
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        for own in (self.runner, *self.servers):
            # Keepers and agents bring each other back: stopped first, none sees another end.
            while pids := own.processes():
                for number in (signal.SIGSTOP, signal.SIGKILL):
                    for pid in pids:
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(pid, number)
                for pid in pids:
                    wait_gone(pid)


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


def started(own: Instance, *command: str) -> subprocess.Popen[bytes]:
    """Start a command, for a ``with`` block."""
    return subprocess.Popen(
        own.command(*command), env=own.environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


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
        team.wait_ready(0 if team.readiness(0)[0] == 200 else 1)
        problems = [problem for run in runs if (problem := run.result())]
    assert took <= TAKE_OVER_SECONDS
    assert problems == [], "\n".join([*problems, team.log(0), team.log(1)])
    stored = team.cluster.sql(
        team.database.rpartition("/")[2], "SELECT state, count(*) FROM jobs GROUP BY state"
    )
    assert stored == [("SUCCESS", JOBS)]


WRITES = """
import os, sys, time
for number in range(int(sys.argv[1])):
    print(f"line {number}", flush=True)
    while number == int(sys.argv[1]) // 2 and not os.path.exists(sys.argv[2]):
        time.sleep(0.02)
    time.sleep(0.002)
"""


@pytest.mark.timeout(180)
def test_a_leader_that_stands_still_is_succeeded_and_finds_itself_fenced(
    team: Team, tmp_path: Path
) -> None:
    first = team.serve(0)
    team.wait_ready(0)
    team.join()
    team.serve(1)
    team.wait_standby(1)
    lines, go_on = 4000, tmp_path / "go on"
    expected = "".join(f"line {number}\n" for number in range(lines)).encode()
    program = (sys.executable, "-S", "-c", WRITES, str(lines), str(go_on))
    job = call(team.client, "ubatch", *program).stdout.decode().strip()
    with ThreadPoolExecutor(2) as clients:
        attached = clients.submit(call, team.client, "urun", "-q", *program)
        following = clients.submit(call, team.client, "updraft", "logs", "-f", job)
        # Both are in the middle of what they write.
        until(lambda: call(team.client, "updraft", "logs", job).stdout.count(b"\n") > lines // 4)
        first.send_signal(signal.SIGSTOP)
        stopped = time.monotonic()
        team.wait_ready(1, TAKE_OVER_SECONDS)
        took = time.monotonic() - stopped
        go_on.touch()
        second = call(team.client, "ubatch", "true").stdout.decode().strip()
        first.send_signal(signal.SIGCONT)
        assert first.wait(30) == 1
        assert "another server leads now; this one ends" in team.log(0)
        ran, followed = attached.result(), following.result()
    assert (ran.returncode, ran.stdout) == (0, expected), ran.stderr
    assert (followed.returncode, followed.stdout) == (0, expected), followed.stderr
    for each in (job, second):
        assert call(team.client, "updraft", "job", "wait", each).returncode == 0
    assert call(team.client, "updraft", "logs", job).stdout == expected
    assert took <= TAKE_OVER_SECONDS


@pytest.mark.timeout(180)
def test_a_leader_that_is_told_to_end_hands_over_and_nobody_notices(
    team: Team, tmp_path: Path, seed: int
) -> None:
    dice = random.Random(seed)
    folder = tmp_path / "lines"
    folder.mkdir()
    first = team.serve(0)
    team.wait_ready(0)
    team.join()
    team.serve(1)
    team.wait_standby(1)
    with ThreadPoolExecutor(6) as clients:
        runs = [
            clients.submit(one, team, folder, number, attached=dice.random() < 0.7)
            for number in range(JOBS // 2)
        ]
        until(lambda: count(folder) >= JOBS // 6, "a third of the jobs to start", 90)
        first.terminate()
        team.wait_ready(1, TAKE_OVER_SECONDS)
        assert first.wait(30) == 0
        problems = [problem for run in runs if (problem := run.result())]
    assert problems == [], "\n".join([*problems, team.log(0), team.log(1)])
    assert "stopped" in team.log(0).splitlines()[-1]
    assert "Traceback" not in team.log(0) + team.log(1)


@pytest.mark.timeout(180)
def test_of_two_that_stand_by_exactly_one_takes_over(team: Team) -> None:
    first = team.serve(0)
    team.wait_ready(0)
    team.join()
    for which in (1, 2):
        team.serve(which)
        team.wait_standby(which)
    first.kill()
    until(lambda: 200 in (team.readiness(1)[0], team.readiness(2)[0]), "one of them")
    second = 1 if team.readiness(1)[0] == 200 else 2
    other = 3 - second
    team.wait_ready(second)
    assert call(team.client, "urun", "-q", "true").returncode == 0
    team.wait_standby(other)
    database = team.database.rpartition("/")[2]
    keepers = team.runner.processes("keeper")
    assert team.cluster.sql(database, "SELECT epoch FROM leadership") == [(2,)]
    team.processes[second].terminate()
    team.wait_ready(other)
    assert team.processes[second].wait(30) == 0
    assert call(team.client, "urun", "-q", "true").returncode == 0
    assert team.cluster.sql(database, "SELECT epoch FROM leadership") == [(3,)]
    assert team.runner.processes("keeper") == keepers != []


@pytest.mark.timeout(180)
def test_no_request_waits_for_ever_for_the_database_and_clients_come_again(
    team: Team, tmp_path: Path
) -> None:
    folder = tmp_path / "lines"
    folder.mkdir()
    team.serve(0)
    team.wait_ready(0)
    team.join()
    token = team.client.environment["UPDRAFT_TOKEN"]
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    program = (sys.executable, "-S", str(PROGRAM), str(folder))
    with (
        started(team.client, "urun", "sh", "-c", f"read x < {gate}; echo $x") as runs,
        ThreadPoolExecutor(2) as clients,
    ):
        writing = gate.open("w")  # it runs
        team.cluster.kill()
        asking = [
            clients.submit(
                httpx.request, method, f"{team.url}/api/v1/{path}", verify=False, timeout=60,
                headers={"Authorization": f"Bearer {token}"},
            )
            for method, path in (("GET", "jobs"), ("POST", "jobs/none/cancel"))
        ]  # fmt: skip
        with started(team.client, "urun", *program, "6") as waits:
            assert runs.stdout is not None
            assert waits.stderr is not None
            assert b"database is away" in waits.stderr.readline()
            for answer in (each.result() for each in asking):
                assert answer.status_code == 503
                assert answer.headers["Retry-After"] == "1"
                error = answer.json()["error"]
                assert error["code"] == "not_ready"
                assert "database is away" in error["message"]
            writing.write("goes on\n")
            writing.close()
            assert runs.stdout.read(8) == b"goes on\n"
            team.cluster.start()
            out, err = waits.communicate(timeout=60)
        assert runs.wait(60) == 0
    assert waits.returncode == 6, err
    assert out == output_of(6, "stdout")
    assert (folder / "6").read_text() == "attempt 1\n"
    assert team.cluster.sql(team.database.rpartition("/")[2], "SELECT count(*) FROM jobs") == [(2,)]


@pytest.mark.timeout(240)
def test_a_leader_that_is_cut_off_from_its_database_renews_no_leases(
    team: Team, tmp_path: Path
) -> None:
    first = team.serve(0)
    team.wait_ready(0)
    team.join()
    team.serve(1)
    team.wait_standby(1)
    told = tmp_path / "pid"
    program = ("sh", "-c", f"echo $$ > {told}.new; mv {told}.new {told}; exec sleep 600")
    job = (
        call(team.client, "ubatch", "--retries", "0", "--on-partition", "fence", *program)
        .stdout.decode()
        .strip()
    )
    until(told.exists, "the job to start", 30)
    team.to_database.freeze()
    until(lambda: team.readiness(1)[0] == 200, "the successor", TAKE_OVER_SECONDS)
    # The runner's connection to the first server is whole, and that answers.
    wait_gone(int(told.read_text()), 60)
    assert first.poll() is None
    team.wait_ready(1)
    assert call(team.client, "updraft", "job", "wait", job).returncode != 0
    team.to_database.thaw()
    assert first.wait(30) == 1
    assert "another server leads now; this one ends" in team.log(0)
