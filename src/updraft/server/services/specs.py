"""What a runner has to know to start a job's tasks."""

from __future__ import annotations

from typing import Any

from updraft.server.services.live import LiveJob
from updraft.wire import frames


def spec_of(
    job: LiveJob, command: dict[str, Any], environment: bytes, quota_bytes: int
) -> dict[str, Any]:
    """Return what all tasks of a job share: the body of a grant, but for what is one attempt's."""
    return {
        **command,
        "job": job.id,
        "owner": job.owner,
        "project": job.project,
        "gpus": [],
        "environment": environment + b"\0UPDRAFT_JOB_ID=" + job.id.encode(),
        "attached": False,
        "limits": [frames.NO_LIMIT, frames.NO_LIMIT],
        "memory_bytes": job.need.memory_bytes,
        "cpus_milli": job.need.cpus_milli,
        "grace_ms": job.grace_ms,
        "deadline_ms": job.time_limit_ms,
        "quota_bytes": quota_bytes,
    }
