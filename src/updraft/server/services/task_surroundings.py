"""What a task finds of its job and of its server in its environment.

What the submitter's environment says of a server and of credentials for it stays behind: within a
task, commands are for the task's own server, as that task.  Values of ``-e`` are meant and stay.
"""

from __future__ import annotations

from typing import Any

from updraft.server.auth import task_tokens
from updraft.server.auth.environment_keys import EnvironmentKeys
from updraft.server.services.live import LiveJob, LiveRunner
from updraft.server.services.task_access import bearer_of

_WAY = (b"UPDRAFT_URL=", b"UPDRAFT_TOKEN=", b"UPDRAFT_FINGERPRINT=", b"UPDRAFT_PROFILE=",
        b"UPDRAFT_PROJECT=")  # fmt: skip
_MEANT = _WAY[:4]


class TaskSurroundings:
    """Makes tasks' environments.  ``socket``: the server's on this machine; empty: unknown."""

    def __init__(self, keys: EnvironmentKeys) -> None:
        self._keys = keys
        self.socket = b""

    def of(
        self, job: LiveJob, serial: int, spec: dict[str, Any], runner: LiveRunner
    ) -> dict[str, Any]:
        """Return what a spec says of these: ``environment``, and ``token`` for a runner elsewhere.

        ``serial``: the attempt's, or the crew's.  How the server is reached from elsewhere is for
        that runner's agent to add.
        """
        environment: bytes = spec["environment"]
        own = not any(entry.startswith(_MEANT) for entry in spec["set_environment"])
        bearer = bearer_of(job, serial) if own and (runner.ships or self.socket) else None
        token = "" if bearer is None else task_tokens.mint(self._keys, bearer)
        if own and b"UPDRAFT_" in environment:
            entries = environment.split(b"\0")
            environment = b"\0".join(each for each in entries if not each.startswith(_WAY))
        said = {"environment": environment, "lineage": list(job.lineage)}
        if runner.ships:
            return {**said, "token": token}
        if token:
            way = b"UPDRAFT_URL=unix://%b\0UPDRAFT_TOKEN=%b" % (self.socket, token.encode())
            said["environment"] = b"\0".join((environment, way))
        return said
