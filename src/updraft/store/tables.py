"""The tables.  A change here needs a migration (``store/migrations``); a test compares the two."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    literal_column,
)
from sqlalchemy.types import TypeEngine

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite gives an autoincrementing key to INTEGER only.
_Serial = BigInteger().with_variant(Integer, "sqlite")


def _bytewise(kind: Text | String) -> TypeEngine[str]:
    """Return a text that is compared by its bytes, as SQLite does, in whatever language."""
    return kind.with_variant(type(kind)(kind.length, collation="C"), "postgresql")


jobs = Table(
    "jobs",
    metadata,
    Column("serial", _Serial, primary_key=True),
    Column("id", _bytewise(String(16)), nullable=False, unique=True),
    Column("owner", Text, nullable=False),
    Column("project", Text, nullable=False),
    Column("jurisdiction", Text, nullable=False),
    Column("submit_key", LargeBinary, nullable=False),
    Column("attached", Boolean, nullable=False),  # a client is to stay with it
    Column("detached", Boolean, nullable=False),  # … but left on purpose
    Column("name", Text, nullable=False),
    Column("labels", Text, nullable=False),  # JSON object
    Column("pool", Text, nullable=False),
    Column("command", LargeBinary, nullable=False),  # packed; what `-e` set is in it
    Column("environment", LargeBinary),  # encrypted; None once the job ended
    Column("key_slot", Integer),
    Column("cpus_milli", Integer, nullable=False),
    Column("memory_bytes", BigInteger, nullable=False),
    Column("gpus", Integer, nullable=False),
    Column("time_limit_ms", BigInteger),
    Column("retries", Integer, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("keep_alive_ms", BigInteger, nullable=False),
    Column("grace_ms", BigInteger, nullable=False),
    Column("source", String(16)),
    Column("parent", String(16)),  # the job of the task that submitted it
    Column("kind", String(8), nullable=False, server_default="single"),
    Column("tasks", Integer, nullable=False, server_default="1"),
    Column("max_parallel", Integer),
    Column("queued", Text),  # an array's tasks that wait, as ranges of their indices
    Column("ok_tasks", Integer, nullable=False, server_default="0"),  # an array's that ended so
    Column("ended_tasks", Integer, nullable=False, server_default="0"),
    Column("retry_on", Text, nullable=False, server_default="lost"),  # words with commas between
    Column("backoff_ms", BigInteger, nullable=False, server_default="0"),
    Column("not_before_ns", BigInteger),
    Column("deadline_ns", BigInteger),
    Column("after", Text),  # JSON list of {job, task, on}: what it waits for, or waited
    Column("state", String(12), nullable=False),
    Column("wanted", String(8), nullable=False),
    Column("exit_code", Integer),
    Column("message", Text, nullable=False),
    Column("created_ns", BigInteger, nullable=False),
    Column("started_ns", BigInteger),
    Column("ended_ns", BigInteger),
    Column("kept", Boolean, nullable=False),  # its output is still stored
    UniqueConstraint("project", "owner", "submit_key"),
    Index("ix_jobs_project_serial", "project", "serial"),
    Index("ix_jobs_project_owner_serial", "project", "owner", "serial"),
    Index("ix_jobs_state_serial", "state", "serial"),
)
_rerun = jobs.c.source.is_not(None)  # most jobs are none, and cost this index nothing
Index("ix_jobs_source", jobs.c.source, sqlite_where=_rerun, postgresql_where=_rerun)
_child = jobs.c.parent.is_not(None)
Index("ix_jobs_parent", jobs.c.parent, sqlite_where=_child, postgresql_where=_child)

attempts = Table(
    "attempts",
    metadata,
    Column("serial", _Serial, primary_key=True),
    Column("job_serial", _Serial, ForeignKey("jobs.serial", ondelete="CASCADE"), nullable=False),
    Column("task_index", Integer, nullable=False),
    Column("number", Integer, nullable=False),
    Column("state", String(8), nullable=False),
    Column("outcome", String(12)),  # the state that its end brought its task to
    Column("crew", BigInteger),  # of which an array's task is part
    Column("runner", Text, nullable=False),
    Column("gpu_ids", Text, nullable=False),  # JSON list of device ids
    Column("pid", Integer),
    Column("granted_ns", BigInteger, nullable=False),
    Column("started_ns", BigInteger),
    Column("ended_ns", BigInteger),
    Column("exit_code", Integer),
    Column("message", Text, nullable=False),
    Column("stdout_bytes", BigInteger),
    Column("stderr_bytes", BigInteger),
    Column("cpu_ns", BigInteger),
    Column("peak_memory_bytes", BigInteger),
    Column("read_bytes", BigInteger),
    Column("written_bytes", BigInteger),
    UniqueConstraint("job_serial", "task_index", "number"),
)
# An array may have a million attempts, of which few are live and few went wrong.
_live = attempts.c.state.in_([literal_column(f"'{s}'") for s in ("GRANTED", "RUNNING", "STOPPING")])
Index("ix_attempts_live", attempts.c.job_serial, sqlite_where=_live, postgresql_where=_live)
_not_ok = (attempts.c.outcome != literal_column("'SUCCESS'")) | (attempts.c.exit_code != 0)
Index(
    "ix_attempts_not_ok",
    attempts.c.job_serial,
    attempts.c.task_index,
    sqlite_where=_not_ok,
    postgresql_where=_not_ok,
)

events = Table(
    "events",
    metadata,
    Column("serial", _Serial, primary_key=True),
    Column("job_serial", _Serial, ForeignKey("jobs.serial", ondelete="CASCADE"), nullable=False),
    Column("at_ns", BigInteger, nullable=False),
    Column("kind", String(16), nullable=False),  # a state, or what else happened
    Column("attempt", Integer),
    Column("message", Text, nullable=False),
    Index("ix_events_job_serial_serial", "job_serial", "serial"),
)

pools = Table(
    "pools",
    metadata,
    Column("name", _bytewise(String(64)), primary_key=True),
    Column("settings", Text, nullable=False),  # JSON object: model.pool's fields
    Column("draining", Boolean, nullable=False),
    Column("created_ns", BigInteger, nullable=False),
)

runners = Table(
    "runners",
    metadata,
    Column("name", _bytewise(String(64)), primary_key=True),
    Column("pool", String(64), nullable=False),
    Column("credential", String(16), nullable=False, unique=True),
    Column("digest", LargeBinary, nullable=False),  # of its token's secret
    Column("host", Text, nullable=False),
    Column("serves", Text),  # the one owner it takes tasks of, if it cannot keep owners apart
    Column("draining", Boolean, nullable=False),
    Column("capacity", Text, nullable=False),  # JSON object: what it said when it joined
    Column("joined_ns", BigInteger, nullable=False),
)

join_tokens = Table(
    "join_tokens",
    metadata,
    Column("credential", String(16), primary_key=True),
    Column("digest", LargeBinary, nullable=False),
    Column("pool", String(64), nullable=False),
    Column("created_by", Text, nullable=False),
    Column("created_ns", BigInteger, nullable=False),
    Column("expires_ns", BigInteger, nullable=False),
    Column("used", Integer, nullable=False),
    Column("most_uses", Integer),
)


def _limits() -> list[Column[int]]:
    """Return the columns of limits; None: without limit."""
    return [
        Column("running_jobs", Integer),
        Column("cpus_milli", BigInteger),
        Column("gpus", Integer),
        Column("memory_bytes", BigInteger),
        Column("stored_bytes", BigInteger),
    ]


users = Table(
    "users",
    metadata,
    Column("serial", _Serial, primary_key=True),
    Column(
        "name", _bytewise(Text()), nullable=False, unique=True
    ),  # never another person's: jobs refer to it
    Column("display", Text, nullable=False),
    Column("email", Text, nullable=False),
    Column("password_hash", Text),
    Column("server_admin", Boolean, nullable=False),
    Column("disabled", Boolean, nullable=False),
    Column("created_ns", BigInteger, nullable=False),
    Column("removed_ns", BigInteger),
    Column("oidc_issuer", Text),
    Column("oidc_subject", Text),
    UniqueConstraint("oidc_issuer", "oidc_subject"),
)

credentials = Table(
    "credentials",
    metadata,
    Column("serial", _Serial, primary_key=True),
    Column("id", String(16), nullable=False, unique=True),
    Column("kind", String(8), nullable=False),  # token, session, browser
    Column("user_serial", _Serial, ForeignKey("users.serial"), nullable=False),
    Column("name", Text, nullable=False),
    Column("digest", LargeBinary, nullable=False),  # of its secret, which is nowhere
    Column("scope", String(8), nullable=False),
    Column("project", Text),  # good for this one only
    Column("created_ns", BigInteger, nullable=False),
    Column("expires_ns", BigInteger),
    Column("last_used_ns", BigInteger),
    Column("revoked_ns", BigInteger),
    Index("ix_credentials_user_serial", "user_serial"),
)

projects = Table(
    "projects",
    metadata,
    Column("serial", _Serial, primary_key=True),
    Column("name", _bytewise(Text()), nullable=False, unique=True),
    Column("created_ns", BigInteger, nullable=False),
    Column("archived_ns", BigInteger),
    *_limits(),
)

members = Table(
    "members",
    metadata,
    Column("project_serial", _Serial, ForeignKey("projects.serial"), primary_key=True),
    Column("user_serial", _Serial, ForeignKey("users.serial"), primary_key=True),
    Column("role", String(8), nullable=False),
    *_limits(),  # of this user in this project
    Index("ix_members_user_serial", "user_serial"),
)

audit = Table(
    "audit",
    metadata,
    Column("serial", _Serial, primary_key=True),
    Column("at_ns", BigInteger, nullable=False),
    Column("who", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("details", Text, nullable=False),  # JSON object
    Column("peer", Text, nullable=False),  # where it was asked from
)

notification_cursors = Table(
    "notification_cursors",
    metadata,
    Column("receiver", Text, primary_key=True),
    Column("event_serial", BigInteger, nullable=False),  # told up to here
)

leadership = Table(
    "leadership",
    metadata,
    Column("one", Integer, primary_key=True, autoincrement=False),  # there is one row
    Column("epoch", BigInteger, nullable=False),  # which server may write
    Column("groups", BigInteger, nullable=False),  # of writes that it has committed
)
