"""Every table and key of ``updraft.toml``: its type, its default, its line of help."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from updraft.configuration.keys import named_tables, setting, table
from updraft.configuration.kinds import (
    ADDRESS,
    CPUS,
    DATABASE,
    DURATION,
    FLAG,
    INTEGER,
    MONEY,
    NAMES,
    NUMBER,
    PATH,
    SECRET_FILE,
    SIZE,
    TEXT,
    UID_RANGE,
    URL,
    Address,
    Bytes,
    Milli,
    Seconds,
    UidRange,
    choice,
    list_of,
    table_of,
)

SELF_SIGNED = "self-signed"
"""The certificate that the server makes itself."""

NOTICES = ("submitted", "started", "retried", "ok", "not_ok")
"""What of a job's life one can be notified of."""

_NEVER = (("never", math.inf),)
_UNLIMITED = (("unlimited", None),)
_ALL = (("all", None),)
_COUNTS = table_of(INTEGER, "kinds and counts")


@dataclass(frozen=True, slots=True)
class Server:
    """``[server]``."""

    listen: Address | None = setting(
        ADDRESS,
        "",
        "where other machines reach the server; on loopback without a certificate: for a proxy "
        "here that does TLS; empty: the owner's unix socket only",
    )
    certificate: str = setting(
        PATH,
        "",
        "TLS certificate with its chain, as PEM; self-signed: the server makes one, "
        "which clients pin",
        words=((SELF_SIGNED, SELF_SIGNED),),
    )
    key: str = setting(PATH, "", "private key of the certificate, as PEM")
    url: str = setting(
        URL,
        "",
        "what clients and runners dial, if it is not what the server listens at",
        derived="made of listen",
    )
    database: str = setting(
        DATABASE,
        "",
        "database of a server that must survive its machine; empty: SQLite in the state folder",
        secret=True,
    )
    data: str = setting(
        PATH,
        "",
        "folder of logs and keys, on a disk that survives the machine if the server must",
        derived="the state folder",
    )
    default_pool: str = setting(
        TEXT,
        "",
        "pool of jobs that name none",
        derived="local if this machine is one, else the only pool of this file, else the only one "
        "that the job's project may use",
    )
    local_pool: bool = setting(
        FLAG,
        True,
        "whether this machine is a pool, whose tasks run as the server's own user",
        derived="false when listen is set",
    )
    suspect_after: Seconds = setting(
        DURATION, "30s", "a runner unseen for this long gets no new tasks", least="1s"
    )
    lost_after: Seconds = setting(
        DURATION,
        "45s",
        "a runner unseen for this long has lost its tasks; longer than suspect_after",
        least="2s",
    )
    max_body: Bytes = setting(
        SIZE,
        "64M",
        "largest body of a request, 16M in any case; four times this in all of them together",
        least="64K",
        most="1G",
    )
    max_connections: int = setting(
        INTEGER, 4096, "connections at a time, of all peers", least=16, most=1_000_000
    )
    connections_per_peer: int = setting(
        INTEGER, 1024, "connections at a time from one address", least=4, most=1_000_000
    )
    requests_per_second: float = setting(
        NUMBER, 500, "requests of one credential, on average over some seconds", least=1
    )
    idle_stop: Seconds = setting(
        DURATION,
        "30m",
        "end server and runner after this long without jobs",
        least="100ms",
        words=_NEVER,
        derived="never when listen is set",
    )
    output_quota: Bytes = setting(
        SIZE,
        "1G",
        "kept of each stream of a job: its first half, then the newest",
        least="64K",
    )
    retention: Seconds = setting(
        DURATION, "30d", "stored output of ended jobs goes after this long", words=_NEVER
    )
    retention_size: Bytes = setting(
        SIZE,
        "20G",
        "stored output of ended jobs goes, oldest first, when there is more than this",
    )
    keep_jobs: Seconds = setting(
        DURATION,
        "365d",
        "an ended job goes from the lists after this long, with all that is stored of it",
        least="1h",
        words=_NEVER,
    )
    log_format: str = setting(choice("text", "json"), "text", "how the server writes its log")
    log_level: str = setting(
        choice("debug", "info", "warning", "error"), "info", "what the server writes to its log"
    )


@dataclass(frozen=True, slots=True)
class Oidc:
    """``[sign_in.oidc]``."""

    issuer: str = setting(URL, "", "the provider's issuer URL; empty: no OpenID Connect")
    client_id: str = setting(TEXT, "", "the id under which the provider knows this server")
    client_secret_file: str = setting(
        SECRET_FILE, "", "file with the client's secret; empty: a public client (PKCE alone)"
    )
    allowed_domains: tuple[str, ...] = setting(
        NAMES, [], "whoever has a verified address in one of them becomes a user by signing in"
    )
    allowed_groups: tuple[str, ...] = setting(
        NAMES, [], "whoever the provider says is in one of them becomes a user by signing in"
    )
    project: str = setting(TEXT, "", "project that such a new user becomes a member of")
    name_claim: str = setting(
        TEXT,
        "",
        "claim that names a new user: one that nobody can change for themselves at the provider; "
        "empty: the verified address does",
    )
    groups_claim: str = setting(TEXT, "groups", "claim with the groups that somebody is in")
    scopes: tuple[str, ...] = setting(
        NAMES, ["profile", "email"], "what the provider is asked for, besides openid"
    )
    ca_file: str = setting(
        PATH, "", "certificates to trust for the provider besides the system's, as PEM"
    )
    label: str = setting(TEXT, "OpenID Connect", "what the provider is called on the button")


@dataclass(frozen=True, slots=True)
class SignIn:
    """``[sign_in]``."""

    passwords: bool = setting(
        FLAG, True, "whether users may sign in with a password of this server"
    )
    session: Seconds = setting(
        DURATION, "12h", "a sign-in that is not used ends after this long", least="1m"
    )
    session_max: Seconds = setting(
        DURATION, "30d", "every sign-in ends after this long", least="1m"
    )
    oidc: Oidc = table(Oidc, "sign-in through an OpenID Connect provider")


@dataclass(frozen=True, slots=True)
class Pool:
    """``[pools.NAME]``."""

    cpus: Milli | None = setting(
        CPUS, "all", "CPUs of each runner that jobs may have", words=_ALL, least=0.001
    )
    memory: Bytes | None = setting(
        SIZE, "all", "memory of each runner that jobs may have", words=_ALL, least="1M"
    )
    gpus: Mapping[str, int] = setting(
        _COUNTS, {}, "GPUs of each runner, by kind; empty: those found"
    )
    labels: Mapping[str, str] = setting(
        table_of(TEXT, "text"), {}, "labels by which jobs choose the pool"
    )
    region: str = setting(TEXT, "", "region in which the pool's machines are")
    jurisdiction: str = setting(TEXT, "", "jurisdiction in which what its jobs write is kept")
    peer_network: str = setting(
        TEXT,
        "",
        "network in which its machines reach each other, as ranks of a gang must; empty: none",
    )
    projects: tuple[str, ...] = setting(NAMES, [], "projects that may use it; empty: all")
    preemptible: bool = setting(FLAG, False, "whether its machines may be taken away at any time")
    price: Decimal = setting(MONEY, "0", "price of a runner for an hour", least=0)
    time_limit: Seconds = setting(
        DURATION, "never", "longest time that a job may run", words=_NEVER, least="1s"
    )
    max_runners: int | None = setting(
        INTEGER, "unlimited", "runners that may join", words=_UNLIMITED, least=1
    )


@dataclass(frozen=True, slots=True)
class Limit:
    """``[limits.project]`` and ``[limits.user]``: what holds where no limit of its own is set."""

    running_jobs: int | None = setting(
        INTEGER, "unlimited", "jobs that run at a time", words=_UNLIMITED, least=0
    )
    cpus: Milli | None = setting(
        CPUS, "unlimited", "CPUs that running jobs have", words=_UNLIMITED, least=0
    )
    gpus: int | None = setting(
        INTEGER, "unlimited", "GPUs that running jobs have", words=_UNLIMITED, least=0
    )
    memory: Bytes | None = setting(
        SIZE, "unlimited", "memory that running jobs have asked for", words=_UNLIMITED
    )
    stored_bytes: Bytes | None = setting(
        SIZE, "unlimited", "stored output of ended jobs; above it no job is taken", words=_UNLIMITED
    )


@dataclass(frozen=True, slots=True)
class Limits:
    """``[limits]``."""

    project: Limit = table(Limit, "limits of every project that has none of its own")
    user: Limit = table(Limit, "limits of every user in a project, who has none of their own there")


@dataclass(frozen=True, slots=True)
class Notification:
    """``[notifications.NAME]``."""

    kind: str = setting(
        choice("webhook", "slack", "email"),
        "webhook",
        "a signed HTTP request, a Slack-compatible message, or an e-mail",
    )
    url: str = setting(URL, "", "where a webhook or a Slack message goes", secret=True)
    secret_file: str = setting(
        SECRET_FILE,
        "",
        "file with the secret that signs a webhook, or the password of smtp_user",
    )
    events: tuple[str, ...] = setting(
        list_of(choice(*NOTICES), ", ".join(f'"{notice}"' for notice in NOTICES)),
        ["ok", "not_ok"],
        "what to tell of; ok: succeeded with exit code 0, not_ok: ended in any other way",
    )
    projects: tuple[str, ...] = setting(NAMES, [], "projects whose jobs are told of; empty: all")
    sender: str = setting(TEXT, "", "sender of an e-mail", name="from")
    to: tuple[str, ...] = setting(NAMES, [], "recipients of an e-mail")
    smtp: Address | None = setting(ADDRESS, "", "mail server of an e-mail")
    smtp_tls: str = setting(
        choice("starttls", "tls", "none"), "starttls", "how the mail server is spoken to"
    )
    smtp_user: str = setting(TEXT, "", "name at the mail server; empty: it asks for none")


@dataclass(frozen=True, slots=True)
class Telemetry:
    """``[telemetry]``."""

    metrics_token_file: str = setting(
        SECRET_FILE,
        "",
        "file with a token that opens /metrics and nothing else; empty: server admins only",
    )
    otlp_endpoint: str = setting(
        URL, "", "OpenTelemetry collector (OTLP over HTTP) that gets traces; empty: none are made"
    )
    sample: float = setting(
        NUMBER, 1.0, "share of requests that are traced, from 0 to 1", least=0, most=1
    )


@dataclass(frozen=True, slots=True)
class Backup:
    """``[backup]``."""

    folder: str = setting(PATH, "", "folder of regular backups; empty: none are made")
    every: Seconds = setting(DURATION, "1d", "time between two backups", least="1m")
    keep: int = setting(INTEGER, 7, "backups that are kept; older ones go", least=1)


@dataclass(frozen=True, slots=True)
class Runner:
    """``[runner]``; a runner reads it when it starts, and ``isolation`` when it joins too."""

    cgroups: bool = setting(FLAG, True, "use control groups where the machine allows it")
    isolation: str = setting(
        choice("auto", "off"),
        "auto",
        "auto: a root runner that has joined takes everybody's tasks where it can keep them "
        "apart, each as its owner's user; off: it takes one user's, and runs them as its own",
    )
    users: str = setting(
        choice("pool", "system"),
        "pool",
        "pool: each owner has a user id of uid_range; system: the account of the owner's name "
        "goes first",
    )
    uid_range: UidRange = setting(
        UID_RANGE,
        "300000-365535",
        "user ids that a root runner gives to owners of tasks; no account of the machine in it",
    )


@dataclass(frozen=True, slots=True)
class Configuration:
    """All of ``updraft.toml``."""

    server: Server = table(Server, "the server itself")
    sign_in: SignIn = table(SignIn, "who may sign in, and for how long")
    pools: Mapping[str, Pool] = named_tables(Pool, "a pool of this name")
    limits: Limits = table(Limits, "what projects and users may have at a time")
    notifications: Mapping[str, Notification] = named_tables(
        Notification, "a receiver of news about jobs, of this name"
    )
    telemetry: Telemetry = table(Telemetry, "metrics and traces")
    backup: Backup = table(Backup, "regular backups")
    runner: Runner = table(Runner, "this machine as a runner")
