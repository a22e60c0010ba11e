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
)

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

jobs = Table(
    "jobs",
    metadata,
    Column("serial", _Serial, primary_key=True),
    Column("id", String(16), nullable=False, unique=True),
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
    Column("state", String(12), nullable=False),
    Column("wanted", String(8), nullable=False),
    Column("exit_code", Integer),
    Column("message", Text, nullable=False),
    Column("created_ns", BigInteger, nullable=False),
    Column("started_ns", BigInteger),
    Column("ended_ns", BigInteger),
    Column("kept", Boolean, nullable=False),  # its output is still stored
    UniqueConstraint("owner", "submit_key"),
    Index("ix_jobs_project_serial", "project", "serial"),
    Index("ix_jobs_state_serial", "state", "serial"),
)
_rerun = jobs.c.source.is_not(None)  # most jobs are none, and cost this index nothing
Index("ix_jobs_source", jobs.c.source, sqlite_where=_rerun, postgresql_where=_rerun)

attempts = Table(
    "attempts",
    metadata,
    Column("serial", _Serial, primary_key=True),
    Column("job_serial", _Serial, ForeignKey("jobs.serial", ondelete="CASCADE"), nullable=False),
    Column("task_index", Integer, nullable=False),
    Column("number", Integer, nullable=False),
    Column("state", String(8), nullable=False),
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

notification_cursors = Table(
    "notification_cursors",
    metadata,
    Column("receiver", Text, primary_key=True),
    Column("event_serial", BigInteger, nullable=False),  # told up to here
)
