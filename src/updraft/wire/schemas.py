"""What travels as JSON over the HTTP API, for the server and the SDK alike.

Times are UTC, durations seconds, sizes bytes.  Answers may grow fields; a client passes over what
it does not know.  Requests are strict: an unknown field is an error, for it may be a misspelt one.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from updraft.model.dependencies import On
from updraft.model.states import AttemptState, State, Wanted

Key = Annotated[str, Field(min_length=8, max_length=64)]
"""Made by the client: the same key twice is one job."""

Labels = dict[str, str]


class Answer(BaseModel):
    """What the server says."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Request(BaseModel):
    """What a client asks."""

    model_config = ConfigDict(frozen=True, extra="forbid")


# -- jobs


class Resources(Answer):
    """What a task has while it runs."""

    cpus: float
    memory_bytes: int | None = Field(description="its limit; null: none was asked for")
    gpus: int


class Times(Answer):
    """When it happened; null: not yet, or not at all."""

    submitted: datetime
    started: datetime | None
    ended: datetime | None


class Usage(Answer):
    """What an attempt used; null where the kernel cannot tell."""

    cpu_seconds: float | None
    peak_memory_bytes: int | None
    read_bytes: int | None
    written_bytes: int | None


class Attempt(Answer):
    """One try at running the job's task."""

    number: int
    state: AttemptState
    runner: str
    pid: int | None
    gpus: list[str] = Field(description="ids of the devices it has")
    granted: datetime
    started: datetime | None
    ended: datetime | None
    exit_code: int | None
    message: str
    stdout_bytes: int | None
    stderr_bytes: int | None
    usage: Usage


class Dependency(Answer):
    """A job, or a task of one, that another one runs after."""

    job: str
    task: int | Literal["*"] | None = Field(
        description="null: all of the job; *: each task waits for that with its own index"
    )
    on: On = Field(description="after what end: any, ok (SUCCESS with exit code 0) or fail")
    waits: bool = Field(description="whether it is still waited for")


class JobSummary(Answer):
    """A job, as lists have it."""

    id: str
    name: str
    owner: str
    project: str
    pool: str
    state: State
    ok: bool | None = Field(description="SUCCESS with exit code 0; null: it has not ended")
    exit_code: int | None = Field(description="the command's; 128 + N when signal N ended it")
    reason: str | None = Field(description="why it waits, or how it ended")
    wanted: Wanted
    command: list[str] = Field(description="cut short in lists when it is long")
    directory: str
    environment: list[str] = Field(description="names that -e set; values are never shown")
    labels: Labels
    attached: bool = Field(description="whether it was submitted by a client that stays with it")
    terminal: bool = Field(description="whether it has a terminal, and not pipes")
    stdin: bool = Field(description="whether it reads its client's input, and not an empty one")
    resources: Resources
    time_limit_seconds: float | None
    retries: int
    priority: int
    times: Times
    source: str | None = Field(description="the job that this one runs again")
    parent: str | None = Field(default=None, description="the job whose task submitted it")
    kind: str = Field(default="single", description="single, array or gang")
    task_count: int = Field(default=1, description="task indices are below it")
    after: list[Dependency] = Field(default_factory=list, description="what it runs after")


class TaskCounts(Answer):
    """How an array's tasks fare."""

    total: int
    queued: int
    running: int
    ok: int
    not_ok: int
    failed: str = Field(description="indices of those that ended without being ok: 3,17-20")


class Task(Attempt):
    """An attempt of one task."""

    index: int
    outcome: State | None = Field(
        description="the state that its end brought the task to; IN_QUEUE: it is tried again"
    )


class Job(JobSummary):
    """A job with its attempts; an array's are at `/jobs/{job}/tasks`."""

    attempts: list[Attempt]
    linked: list[str] = Field(description="jobs that ran this one again")
    children: int = Field(default=0, description="how many jobs its tasks submitted")
    live_children: list[str] = Field(
        default_factory=list, description="those of them that have not ended, 100 at most"
    )
    tasks: TaskCounts | None = Field(default=None, description="of an array")


class JobPage(Answer):
    """Part of a list, newest first."""

    jobs: list[JobSummary]
    next_cursor: str | None = Field(description="for the next page; null at the end")


class Event(Answer):
    """Something that happened to a job: a state, with a message."""

    serial: int = Field(description="rises; `after` continues behind it")
    at: datetime
    kind: str = Field(description="the state that was entered")
    attempt: int | None
    message: str


class After(Request):
    """A job of the same project, or a task of one, that is to end first."""

    job: str = Field(min_length=1, max_length=10)
    task: Annotated[int, Field(ge=0, lt=10_000_000)] | Literal["*"] | None = Field(
        default=None,
        description="null: all of the job; *: each task waits for that with its own index",
    )
    on: On = Field(default=On.ANY, description="any, ok (SUCCESS with exit code 0) or fail")


class SubmitRequest(Request):
    """A detached job: a command with its surroundings."""

    key: Key
    argv: list[str] = Field(min_length=1)
    directory: str = Field(description="an absolute path")
    environment: dict[str, str] = Field(
        default_factory=dict, description="all of it: stored encrypted until the job ends"
    )
    set_environment: dict[str, str] = Field(
        default_factory=dict, description="set over `environment`, and kept for a rerun"
    )
    name: str = ""
    labels: Labels = Field(default_factory=dict)
    pool: str = Field(default="", description="empty: the server's default one")
    cpus: float = Field(default=1, ge=0, le=1e6)
    memory_bytes: int = Field(default=0, ge=0, description="0: no limit")
    gpus: int = Field(default=0, ge=0)
    time_limit_seconds: float | None = Field(default=None, gt=0, le=315_360_000)
    kind: Literal["single", "array"] = Field(
        default="single", description="an array has independent tasks"
    )
    tasks: int = Field(default=1, ge=1, le=10_000_000)
    max_parallel: int | None = Field(default=None, ge=1, description="of an array's tasks")
    retries: int = Field(default=0, ge=0, le=1000)
    retry_on: list[Literal["lost", "exit", "oom", "expired"]] = Field(
        default=["lost"], description="after what a task is tried again"
    )
    backoff_seconds: float = Field(
        default=0, ge=0, le=3600, description="before the first retry; doubled for each further one"
    )
    not_before: datetime | None = Field(default=None, description="it does not start before")
    deadline: datetime | None = Field(default=None, description="it is ended then")
    after: list[After] = Field(
        default_factory=list, max_length=1000, description="what it is to run after"
    )
    priority: int = Field(default=0, ge=-1_000_000, le=1_000_000)
    grace_seconds: float = Field(default=10, ge=0, le=86400)
    umask: int = Field(default=0o022, ge=0, le=0o777)
    fallback_directory: bool = Field(
        default=False, description="whether an empty workspace will do where `directory` is missing"
    )


class RerunRequest(Request):
    """What a rerun takes from its caller."""

    key: Key
    failed: bool = Field(
        default=False, description="of an array, only the tasks that did not end ok"
    )
    after: list[After] = Field(
        default_factory=list, max_length=1000, description="what it is to run after"
    )
    labels: Labels | None = Field(default=None, description="null: those of the job")
    environment: dict[str, str] = Field(default_factory=dict, description="the caller's own")
    environment_base64: str | None = Field(
        default=None,
        description="instead of `environment`, where it is not all text: "
        "KEY=VALUE entries separated by NUL bytes, in base64",
    )


class ExtendRequest(Request):
    """More time for a job."""

    seconds: float = Field(gt=0, le=315_360_000)


# -- the server

StopMode = Literal["refuse", "drain", "cancel"]


class StopRequest(Request):
    """How to stop: refuse while jobs live, wait for their ends, or end them."""

    mode: StopMode = "refuse"


class ServerStatus(Answer):
    """The server's process."""

    pid: int
    version: str
    wire: int
    started: datetime


class Device(Answer):
    """A GPU."""

    index: int
    uuid: str
    kind: str
    memory_bytes: int


class RunnerStatus(Answer):
    """The local runner; null for what is not known while none has connected."""

    connected: bool
    pid: int | None = Field(description="the keeper's")
    agent_pid: int | None
    version: str | None
    cpus: float | None
    cpus_free: float | None
    memory_bytes: int | None
    gpus: list[Device]


class JobCounts(Answer):
    """How many of the caller's jobs have not ended."""

    running: int
    in_queue: int


class Paths(Answer):
    """Where things are."""

    state: str
    socket: str
    database: str
    logs: str
    log: str
    config: str


class Status(Answer):
    """The server, its runner and their jobs."""

    server: ServerStatus
    runner: RunnerStatus
    jobs: JobCounts
    paths: Paths
    local_pool: bool = Field(
        default=True, description="whether the server's machine is a pool, and has a runner"
    )


# -- errors


class ErrorDetail(Answer):
    """A stable code, and one sentence that names the thing and the mend."""

    code: str
    message: str


class Error(Answer):
    """The body of every answer that is none."""

    error: ErrorDetail
