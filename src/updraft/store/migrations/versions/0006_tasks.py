"""jobs of many tasks, retry policies, jobs of jobs."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_LIVE = sa.text("state IN ('GRANTED', 'RUNNING', 'STOPPING')")
_NOT_OK = sa.text("outcome != 'SUCCESS' OR exit_code != 0")
_CHILD = sa.text("parent IS NOT NULL")


def upgrade() -> None:
    # What may not be NULL has a default, so that no table is copied.
    for column in (
        sa.Column("parent", sa.String(16)),
        sa.Column("kind", sa.String(8), nullable=False, server_default="single"),
        sa.Column("tasks", sa.Integer(), nullable=False, server_default="1"),
        sa.Column("max_parallel", sa.Integer()),
        sa.Column("queued", sa.Text()),
        sa.Column("ok_tasks", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("ended_tasks", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("retry_on", sa.Text(), nullable=False, server_default="lost"),
        sa.Column("backoff_ms", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("not_before_ns", sa.BigInteger()),
        sa.Column("deadline_ns", sa.BigInteger()),
        sa.Column("after", sa.Text()),
    ):
        op.add_column("jobs", column)
    op.add_column("attempts", sa.Column("outcome", sa.String(12)))
    op.add_column("attempts", sa.Column("crew", sa.BigInteger()))
    op.create_index(
        "ix_jobs_parent", "jobs", ["parent"], sqlite_where=_CHILD, postgresql_where=_CHILD
    )
    op.create_index(
        "ix_attempts_live", "attempts", ["job_serial"], sqlite_where=_LIVE, postgresql_where=_LIVE
    )
    op.create_index(
        "ix_attempts_not_ok",
        "attempts",
        ["job_serial", "task_index"],
        sqlite_where=_NOT_OK,
        postgresql_where=_NOT_OK,
    )
