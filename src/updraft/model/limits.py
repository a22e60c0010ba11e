"""Limits of a project, and of a user in one, and what is counted against them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace

from updraft.model.job import Resources


@dataclass(frozen=True, slots=True)
class Limits:
    """At most so much at a time; None: without limit."""

    running_jobs: int | None = None
    cpus_milli: int | None = None
    gpus: int | None = None
    memory_bytes: int | None = None
    stored_bytes: int | None = None
    """Of output, of jobs that ended."""

    def over(self, defaults: Limits) -> Limits:
        """Return what holds: these, and the default where there is none."""
        own = {name: value for name, value in asdict(self).items() if value is not None}
        return replace(defaults, **own)


NO_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class DefaultLimits:
    """What holds where no limit of its own is set."""

    project: Limits = NO_LIMITS
    user: Limits = NO_LIMITS
    """Of a user in a project."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What the running jobs of a project, or of a user in one, have together."""

    running_jobs: int = 0
    cpus_milli: int = 0
    gpus: int = 0
    memory_bytes: int = 0

    def plus(self, need: Resources) -> Usage:
        """Return the usage with one more job."""
        return Usage(
            self.running_jobs + 1,
            self.cpus_milli + need.cpus_milli,
            self.gpus + need.gpus,
            self.memory_bytes + need.memory_bytes,
        )

    def minus(self, need: Resources) -> Usage:
        """Return the usage with one job less."""
        return Usage(
            self.running_jobs - 1,
            self.cpus_milli - need.cpus_milli,
            self.gpus - need.gpus,
            self.memory_bytes - need.memory_bytes,
        )


_SHOWN = {"running_jobs": "running jobs", "cpus_milli": "CPUs", "gpus": "GPUs"}


def reached(limits: Limits, used: Usage, need: Resources) -> str | None:
    """Return which limit keeps one more job from starting now, as ``4 of 4 running jobs``.

    None: there is room.
    """
    after = used.plus(need)
    for field in fields(Usage):
        limit = getattr(limits, field.name)
        if limit is not None and getattr(after, field.name) > limit:
            return _told(field.name, getattr(used, field.name), limit)
    return None


def never_allowed(limits: Limits, need: Resources) -> str | None:
    """Return which limit a job exceeds all by itself; None: it can start some time."""
    return reached(limits, Usage(), need)


def _told(name: str, used: int, limit: int) -> str:
    match name:
        case "cpus_milli":
            return f"{used / 1000:g} of {limit / 1000:g} CPUs"
        case "memory_bytes":
            return f"{used >> 20} of {limit >> 20} MiB of memory"
    return f"{used} of {limit} {_SHOWN[name]}"
