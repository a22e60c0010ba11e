"""A keeper of the test's own: a real process, in a folder of its own, with nobody but the test."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.runner.bare_agent import BareAgent, HungUp
from tests.waiting import until, wait_gone
from updraft import errors, settings
from updraft.runner.keeper.processes import descendants
from updraft.wire import frames

WAITING_AGENT = ["/bin/cat"]
"""A process in the agent's place; it reads what the test writes to the keeper's stdin: nothing."""


class KeeperProcess:
    """Starts a keeper, and makes sure in the end that nothing of it is left."""

    def __init__(
        self,
        folder: Path,
        agent: list[str] | None = None,
        *,
        cgroups: bool = False,
        trace_imports: bool = False,
        isolation: dict[str, Any] | None = None,
        shared: bool = False,
    ) -> None:
        self.folder = folder
        self.isolation = isolation
        self._trace = ["-X", "importtime"] if trace_imports else []
        # Beside the folder's own: that may be on a disk which the test fills.
        self._log = folder.parent.with_suffix(".log")
        self.options = [] if cgroups else ["--no-cgroups"]
        self.options += ["--shared"] if shared else []
        self.socket = folder / "keeper.sock"
        self.agent = WAITING_AGENT if agent is None else agent
        self._spawned = 0
        self._agents: list[BareAgent] = []
        self.start()

    def start(self) -> None:
        """Start it, also again in the same folder."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        command = [sys.executable, "-I", *self._trace, "-m", "updraft.runner.keeper"]
        command += ["--folder", str(self.folder), *self.options, "--", *self.agent]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=settings.background_environment(),
                start_new_session=True,
            )
        until(self.answers, "the keeper to answer")

    def answers(self) -> bool:
        """Whether it takes an agent."""
        assert self.process.poll() is None, self.log()
        try:
            agent = BareAgent(self.socket)
        except (FileNotFoundError, ConnectionRefusedError, HungUp):
            return False  # not yet there, or a leader of a killed one still has its socket
        agent.close()
        return bool(agent.report["pid"] == self.process.pid)

    def connect(self, *, greet: bool = True) -> BareAgent:
        """Return a new agent, which is closed in the end."""
        agent = BareAgent(self.socket, greet=greet)
        self._agents.append(agent)
        return agent

    def spec(self, *argv: str, **changes: Any) -> dict[str, Any]:
        """A spec of ``argv``, run freely on pipes, with a folder of its own."""
        self._spawned += 1
        return {
            "job": f"j{self._spawned:09}",
            "folder": os.fsencode(self.folder / "logs" / str(self._spawned)),
            "argv": [os.fsencode(word) for word in argv],
            "environment": b"PATH=" + os.environb.get(b"PATH", os.fsencode(os.defpath)),
            "directory": b"/",
            "umask": 0o022,
            "nice": 0,
            "rlimits": [],
            "ignored_signals": [],
            "closed_fds": [],
            "set_environment": [],
            "stdin": True,
            "one_output": False,
            "tty": None,
            "attached": True,
            "limits": [frames.NO_LIMIT, frames.NO_LIMIT],
            "cpus_milli": 1000,
            "memory_bytes": 0,
            "grace_ms": 10_000,
            "deadline_ms": None,
            "quota_bytes": 1 << 30,
            "isolation": self.isolation,
            **changes,
        }

    def shell(self, script: str, **changes: Any) -> dict[str, Any]:
        """A spec of a shell script."""
        return self.spec("/bin/sh", "-c", script, **changes)

    def log(self) -> str:
        """What the keeper wrote to its stderr: nothing, unless it crashed."""
        return self._log.read_text()

    def leader_of(self, pid: int) -> int:
        """The process id of the leader above a command."""
        fields = Path(f"/proc/{pid}/stat").read_bytes()
        return int(fields[fields.rindex(b")") + 4 :].split()[0])

    def seen_here(self, command: int, pids: list[int]) -> list[int]:
        """The process ids of what a command, and what it started, knows by these ``pids``."""
        if self.isolation is None:
            return pids
        namespace = Path(f"/proc/{command}/ns/pid").readlink()
        ours: dict[int, int] = {}
        for process in Path("/proc").iterdir():
            try:
                if (process / "ns/pid").readlink() == namespace:
                    status = (process / "status").read_text()
                    line = status[status.index("NSpid:") :].split("\n")[0]
                    ours[int(line.split()[-1])] = int(process.name)
            except (OSError, ValueError):
                continue
        return [ours[pid] for pid in pids]

    def leaders(self) -> list[int]:
        """The process ids of all its leaders, idle ones too."""
        return [pid for pid in descendants(self.process.pid) if name_of(pid) == "updraft-leader"]

    def kill(self) -> list[int]:
        """End it as ``kill -9`` does; return who was below it then."""
        below = descendants(self.process.pid)
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()
        return below

    def end(self) -> None:
        """End it, if it is still there, and check that it did not crash and left nothing."""
        for agent in self._agents:
            agent.close()
        crashed = self.process.poll() not in (None, 0, errors.EXIT_REMOVED, -signal.SIGKILL)
        for pid in self.kill():
            wait_gone(pid)
        assert not crashed, self.log()
        assert self._trace or self.log() == ""


def name_of(pid: int) -> str:
    """The name of a process, as ``ps`` shows it; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""
