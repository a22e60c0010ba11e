"""A PostgreSQL of the tests' own: a fresh cluster that can be killed and started again."""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import psycopg

from tests.waiting import wait_gone

_SETTINGS = {
    "fsync": "off",  # no test cuts the power
    "max_connections": "60",
    "shared_buffers": "16MB",
    "log_min_messages": "fatal",
}
_ADMIN = "admin"
PASSWORD = os.urandom(12).hex()


def programs() -> Path | None:
    """Return the folder of PostgreSQL's programs; None where it is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=_version)
    if found:
        return found[-1].parent
    path = shutil.which("initdb")
    return None if path is None else Path(path).resolve().parent


def _version(initdb: Path) -> float:
    return float(initdb.parts[-3])


class Cluster:
    """One server of PostgreSQL, on loopback and on a unix socket, and its databases."""

    def __init__(self, bin_folder: Path) -> None:
        self._bin = bin_folder
        # A socket's path is short; and as root, another user is to pass through.
        where = "/tmp" if os.geteuid() == 0 else None
        self.folder = Path(tempfile.mkdtemp(prefix="updraft-pg-", dir=where))
        self._data = self.folder / "data"
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = count()
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        secret = self.folder / "password"
        secret.write_text(PASSWORD)
        self._as_user: list[str] = []
        if os.geteuid() == 0:  # PostgreSQL refuses root
            user = pwd.getpwnam("nobody")
            os.chown(self.folder, user.pw_uid, user.pw_gid)
            os.chown(secret, user.pw_uid, user.pw_gid)
            ids = [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
            self._as_user = ["setpriv", *ids]
        # A language whose order is not that of the bytes: what depends on it shows.
        subprocess.run(
            [*self._as_user, str(self._bin / "initdb"), "-D", str(self._data), "-U", _ADMIN, "-E",
             "UTF8", "--locale=C.UTF-8", "--locale-provider=icu", "--icu-locale=en-US", "--no-sync",
             "--auth-local=trust", "--auth-host=scram-sha-256", f"--pwfile={secret}"],
            check=True, capture_output=True, cwd="/",
        )  # fmt: skip

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = ["setpriv", "--pdeathsig=KILL", *self._as_user[1:]]
        command += [str(self._bin / "postgres"), "-D", str(self._data), "-p", str(self.port)]
        command += ["-c", "listen_addresses=127.0.0.1", "-k", str(self.folder)]
        for name, value in _SETTINGS.items():
            command += ["-c", f"{name}={value}"]
        log = (self.folder / "log").open("ab")
        with log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/"
            )
        until = time.monotonic() + 60
        while True:
            try:
                psycopg.connect(self._local("postgres")).close()
                return
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > until:
                    raise AssertionError((self.folder / "log").read_text()) from None
                time.sleep(0.02)

    def kill(self) -> None:
        """Kill all of its processes at once."""
        process = self._process
        assert process is not None
        victims = [process.pid]
        for task in Path(f"/proc/{process.pid}/task").iterdir():
            victims += map(int, (task / "children").read_text().split())
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        for pid in victims[1:]:
            wait_gone(pid)

    def close(self) -> None:
        """End it and remove it."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait()
        shutil.rmtree(self.folder)

    def _local(self, database: str) -> str:
        return f"postgresql://{_ADMIN}@/{database}?host={self.folder}&port={self.port}"

    def url(self, database: str, password: str = PASSWORD) -> str:
        """Return the URL of a database, over TCP."""
        return f"postgresql://{_ADMIN}:{password}@127.0.0.1:{self.port}/{database}"

    def sql(self, database: str, statement: str) -> list[tuple[object, ...]]:
        """Run a statement and return its rows."""
        with psycopg.connect(self._local(database), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description is not None else []

    def make_database(self, template: str = "template0") -> str:
        """Make an empty database, or a copy of another; return its name."""
        name = f"test{next(self._numbers)}"
        self.sql("postgres", f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def drop_database(self, name: str) -> None:
        """Remove a database, whoever uses it."""
        self.sql("postgres", f"DROP DATABASE {name} WITH (FORCE)")


@contextlib.contextmanager
def cluster() -> Iterator[Cluster]:
    """Return a started cluster for a ``with`` block."""
    bin_folder = programs()
    assert bin_folder is not None
    made = Cluster(bin_folder)
    try:
        made.start()
        yield made
    finally:
        made.close()
