"""What travels over the HTTP API about pools and runners."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated

from pydantic import Field

from updraft.wire.schemas import Answer, Device, Labels, Request

Name = Annotated[str, Field(min_length=1, max_length=63)]


class Capacity(Request):
    """What a machine has."""

    cpus_milli: int = Field(ge=0, le=1 << 31)
    memory_bytes: int = Field(ge=0, le=1 << 60)
    gpus: list[dict[str, str | int]] = Field(default_factory=list, max_length=1024)
    host: str = Field(default="", max_length=255)


class JoinRequest(Request):
    """A machine that becomes a runner."""

    name: str = Field(default="", max_length=63, description="empty: its host's name")
    capacity: Capacity
    shared: bool = Field(
        default=False, description="whether it keeps the tasks of several owners apart"
    )
    serves: str = Field(
        default="",
        max_length=255,
        description="the one owner whose tasks it takes; empty: the token's maker, unless shared",
    )


class JoinAnswer(Answer):
    """Its place."""

    name: str
    pool: str
    serves: str | None = Field(default=None, description="the one owner whose tasks it takes")
    token: str = Field(description="what the runner proves itself with; shown here only")


class RunnerInfo(Answer):
    """A runner."""

    name: str
    pool: str
    state: str = Field(description="ready, draining, suspect, lost or away")
    seen_seconds: float | None = Field(description="how long ago it was last heard of")
    serves: str | None
    release: str | None
    cpus: float
    cpus_free: float
    memory_bytes: int
    memory_free_bytes: int
    gpus: list[Device]
    gpus_free: int
    tasks: int


class TokenRequest(Request):
    """A token for machines to join with."""

    pool: Name
    expires_seconds: float = Field(default=86400, gt=0, le=31_536_000)
    uses: int | None = Field(default=None, ge=1, description="null: as often as wanted")


class TokenAnswer(Answer):
    """It is shown here only."""

    token: str


class PoolRequest(Request):
    """A pool to make."""

    name: Name
    cpus: float | None = Field(default=None, ge=0, description="of one runner, at most")
    memory_bytes: int | None = Field(default=None, ge=0)
    gpus: dict[str, int] = Field(default_factory=dict, description="count by kind")
    labels: Labels = Field(default_factory=dict)
    region: str = ""
    jurisdiction: str = "local"
    peer_network: str = ""
    projects: list[str] = Field(default_factory=list, description="empty: every project")
    preemptible: bool = False
    price_per_hour: Decimal | None = Field(default=None, ge=0)
    time_limit_seconds: float | None = Field(default=None, gt=0)


class PoolInfo(Answer):
    """A pool: what it has, what is taken, and who waits."""

    name: str
    draining: bool
    runners: int
    runners_ready: int
    cpus: float
    cpus_free: float
    memory_bytes: int
    memory_free_bytes: int
    gpus: int
    gpus_free: int
    running: int
    queued: int
    reason: str | None = Field(description="why the first one waits")
    labels: Labels
    region: str
    jurisdiction: str
    peer_network: str
    projects: list[str]
    preemptible: bool
    price_per_hour: Decimal | None
    time_limit_seconds: float | None
