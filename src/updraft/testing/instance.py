"""An Updraft of a test's own: a fresh home, its commands, its processes, and its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

WAIT_SECONDS = 30.0
_OTHERS = ("UPDRAFT_URL", "UPDRAFT_TOKEN", "UPDRAFT_FINGERPRINT", "UPDRAFT_PROFILE")
"""What names another server, as where the tests are a job themselves."""


_KEEPER_S = {"updraft-leader": "leader", "updraft-worker": "worker"}
"""What processes that a keeper forks are, by their names."""


class Instance:
    """One ``UPDRAFT_HOME`` and what runs for it.

    ``commands`` is the folder of the installed ``urun``, ``ubatch`` and ``updraft``: by default the
    one of the running interpreter.
    """

    def __init__(self, home: Path, commands: Path | None = None) -> None:
        self.home = home
        self.commands = commands or Path(sys.executable).parent
        self.faults = home / "faults"
        self.faults.mkdir(parents=True, exist_ok=True)
        self.environment = {
            **{name: value for name, value in os.environ.items() if name not in _OTHERS},
            "UPDRAFT_HOME": str(home),
            "UPDRAFT_FAULTS": str(self.faults),
            "PYTHONDONTWRITEBYTECODE": "",
        }

    @property
    def state(self) -> Path:
        """The state folder, once there is one."""
        return next((self.home / "state").iterdir())

    def command(self, name: str, *arguments: str) -> list[str]:
        """Return the full command line of one of Updraft's commands."""
        return [str(self.commands / name), *arguments]

    def run(
        self, name: str, *arguments: str, timeout: float = WAIT_SECONDS, data: bytes | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command to its end and return what it wrote and its exit code."""
        return subprocess.run(
            self.command(name, *arguments),
            env=self.environment,
            input=data,
            stdin=subprocess.DEVNULL if data is None else None,
            capture_output=True,
            timeout=timeout,
            check=False,
        )

    def processes(self, role: str | None = None) -> list[int]:
        """Return the ids of this instance's background processes.

        ``role``: ``server``, ``agent``, ``keeper`` (without its leaders), or all of them.
        """
        mark = b"UPDRAFT_HOME=" + os.fsencode(self.home)
        found = []
        for entry in (path.name for path in Path("/proc").iterdir()):
            if not entry.isdigit() or int(entry) == os.getpid():
                continue
            try:
                words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
                environ = Path(f"/proc/{entry}/environ").read_bytes().split(b"\0")
                name = Path(f"/proc/{entry}/comm").read_text().strip()
            except OSError:
                continue
            if mark not in environ or b"-m" not in words:
                continue
            module = words[words.index(b"-m") + 1]
            of_role = {
                b"updraft.server": "server",
                b"updraft.runner.agent": "agent",
                b"updraft.runner.keeper": _KEEPER_S.get(name, "keeper"),
            }.get(module)
            if of_role is not None and role in (None, of_role):
                found.append(int(entry))
        return found

    def kill(self, role: str | None = None) -> int:
        """Kill the processes of a role, or all, with SIGKILL; return how many there were."""
        victims = self.processes(role)
        for pid in victims:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        return len(victims)

    def kill_all(self) -> None:
        """Kill all processes at once, as a power cut does.

        They are stopped first: killed one after another, those that are left start the dead anew.
        """
        stopped: set[int] = set()
        while found := set(self.processes()) - stopped:
            for pid in found:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
            stopped |= found
        for pid in stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def arm(self, point: str) -> None:
        """Arm a crash point (``updraft.faults.POINTS``)."""
        (self.faults / point).touch()

    def reached(self, point: str) -> bool:
        """Whether an armed crash point has fired."""
        return (self.faults / f"{point}.reached").exists()

    def stop(self) -> None:
        """Stop everything, and fail if something is left."""
        result = self.run("updraft", "stop", "--cancel", timeout=60)
        until = time.monotonic() + WAIT_SECONDS
        while left := self.processes():
            if time.monotonic() > until:
                for pid in left:
                    os.kill(pid, signal.SIGKILL)
                raise AssertionError(f"stop left {left}: {result.stderr!r}")
            time.sleep(0.02)


@contextmanager
def instance(home: Path, commands: Path | None = None) -> Iterator[Instance]:
    """Return an instance in ``home`` for a ``with`` block, stopped at its end."""
    made = Instance(home, commands)
    try:
        yield made
    finally:
        made.stop()


def wait_for(what: str, look: object, timeout: float = WAIT_SECONDS) -> None:
    """Wait until ``look()`` is true; fail naming ``what`` after ``timeout`` seconds."""
    assert callable(look)
    until = time.monotonic() + timeout
    while not look():
        if time.monotonic() > until:
            raise AssertionError(f"{what}: not within {timeout:.0f} s")
        time.sleep(0.01)
