"""What travels over the HTTP API about pools and runners."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from updraft.wire.schemas import Answer, Device, Request

Name = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[!-~]([ -~]*[!-~])?$")]
Text = Annotated[str, Field(max_length=255, pattern=r"^[ -~]*$")]


class Gpu(BaseModel):
    """A GPU of a machine's."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    index: int = Field(ge=0, le=1 << 31)
    uuid: Text
    kind: Text
    memory_bytes: int = Field(ge=0, le=1 << 60)


class Capacity(Request):
    """What a machine has."""

    cpus_milli: int = Field(ge=0, le=1 << 31)
    memory_bytes: int = Field(ge=0, le=1 << 60)
    gpus: list[Gpu] = Field(default_factory=list, max_length=1024)
    host: Text = ""


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
    joined_as: list[Text] = Field(
        default_factory=list,
        max_length=1000,
        description="ids of the credentials that this machine got as a runner before",
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
    state: str = Field(description="ready, draining, lost or away")
    seen_seconds: float | None = Field(description="how long ago it was last heard of")
    serves: str | None
    release: str | None
    outdated: bool = Field(
        default=False, description="whether it runs another release than the server"
    )
    upgrading: bool = False
    upgrade_problem: str | None = Field(default=None, description="why the last upgrade failed")
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
    uses: int | None = Field(default=None, ge=1, le=1 << 30, description="null: as often as wanted")


class TokenAnswer(Answer):
    """It is shown here only."""

    token: str
    line: str = Field(
        default="", description="for the shell of a machine that is to join; empty: there is no way"
    )


class TokenInfo(Answer):
    """A join token that is of use; what it consists of is shown at its making only."""

    id: str
    pool: str
    created_by: str
    created: datetime
    expires: datetime
    used: int
    uses: int | None = Field(description="how often it may be; null: as often as wanted")


class TokenInfos(Answer):
    """Newest first."""

    tokens: list[TokenInfo]


class _Settings(BaseModel):
    cpus: float | None = Field(
        default=None, gt=0, le=1_000_000, description="of one runner, at most; null: all of them"
    )
    memory_bytes: int | None = Field(default=None, ge=1 << 20, le=1 << 60)
    gpus: dict[Name, Annotated[int, Field(ge=0, le=1024)]] = Field(
        default_factory=dict, max_length=64, description="count by kind; empty: all of them"
    )
    labels: dict[Name, Text] = Field(default_factory=dict, max_length=64)
    region: Text = ""
    jurisdiction: Text = "local"
    peer_network: Text = ""
    projects: list[Name] = Field(
        default_factory=list, max_length=1024, description="empty: every project"
    )
    preemptible: bool = False
    price_per_hour: Decimal | None = Field(
        default=None, ge=0, lt=1_000_000_000, allow_inf_nan=False, description="of one runner"
    )
    time_limit_seconds: float | None = Field(default=None, gt=0, le=315_360_000)
    max_runners: int | None = Field(
        default=None, ge=1, le=1 << 20, description="how many may join; null: any number"
    )


class PoolSettings(_Settings, Request):
    """What an administrator decides about a pool; what is left out is as it is by default."""


class PoolRequest(PoolSettings):
    """A pool to make."""

    name: Name


class ShownSettings(_Settings, Answer):
    """What an administrator decided about a pool."""


class PoolInfo(Answer):
    """A pool: what it has, what of it is free, and who waits.

    For whoever is no server admin, jobs are those of their project.
    """

    name: str
    configured: bool = Field(description="whether it is written in the server's updraft.toml")
    draining: bool
    runners: int
    runners_ready: int
    cpus: float = Field(description="of the runners that are ready, together")
    cpus_free: float
    memory_bytes: int
    memory_free_bytes: int
    gpus: int
    gpus_free: int
    running: int
    queued: int
    ahead: int = Field(description="how many of other projects come before the first one")
    reason: str | None = Field(description="why the first one waits")
    settings: ShownSettings


class PoolInfos(Answer):
    """By name."""

    pools: list[PoolInfo]


class RunnerInfos(Answer):
    """By name."""

    runners: list[RunnerInfo]
