"""users, credentials, projects, members and the audit; keys of submissions are a project's own."""

import time

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_SERIAL = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _limits() -> list[sa.Column[int]]:
    return [
        sa.Column("running_jobs", sa.Integer(), nullable=True),
        sa.Column("cpus_milli", sa.BigInteger(), nullable=True),
        sa.Column("gpus", sa.Integer(), nullable=True),
        sa.Column("memory_bytes", sa.BigInteger(), nullable=True),
        sa.Column("stored_bytes", sa.BigInteger(), nullable=True),
    ]


def upgrade() -> None:
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.drop_constraint("uq_jobs_owner_submit_key", type_="unique")
        batch_op.create_unique_constraint(
            "uq_jobs_project_owner_submit_key", ["project", "owner", "submit_key"]
        )
        batch_op.create_index(
            "ix_jobs_project_owner_serial", ["project", "owner", "serial"], unique=False
        )

    op.create_table(
        "users",
        sa.Column("serial", _SERIAL, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("display", sa.Text(), nullable=False),
        sa.Column("email", sa.Text(), nullable=False),
        sa.Column("password_hash", sa.Text(), nullable=True),
        sa.Column("server_admin", sa.Boolean(), nullable=False),
        sa.Column("disabled", sa.Boolean(), nullable=False),
        sa.Column("created_ns", sa.BigInteger(), nullable=False),
        sa.Column("removed_ns", sa.BigInteger(), nullable=True),
        sa.Column("oidc_issuer", sa.Text(), nullable=True),
        sa.Column("oidc_subject", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("serial", name=op.f("pk_users")),
        sa.UniqueConstraint("name", name=op.f("uq_users_name")),
        sa.UniqueConstraint(
            "oidc_issuer", "oidc_subject", name=op.f("uq_users_oidc_issuer_oidc_subject")
        ),
    )
    op.create_table(
        "credentials",
        sa.Column("serial", _SERIAL, nullable=False),
        sa.Column("id", sa.String(length=16), nullable=False),
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("user_serial", _SERIAL, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("scope", sa.String(length=8), nullable=False),
        sa.Column("project", sa.Text(), nullable=True),
        sa.Column("created_ns", sa.BigInteger(), nullable=False),
        sa.Column("expires_ns", sa.BigInteger(), nullable=True),
        sa.Column("last_used_ns", sa.BigInteger(), nullable=True),
        sa.Column("revoked_ns", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["user_serial"], ["users.serial"], name=op.f("fk_credentials_user_serial")
        ),
        sa.PrimaryKeyConstraint("serial", name=op.f("pk_credentials")),
        sa.UniqueConstraint("id", name=op.f("uq_credentials_id")),
    )
    op.create_index("ix_credentials_user_serial", "credentials", ["user_serial"], unique=False)
    projects = op.create_table(
        "projects",
        sa.Column("serial", _SERIAL, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created_ns", sa.BigInteger(), nullable=False),
        sa.Column("archived_ns", sa.BigInteger(), nullable=True),
        *_limits(),
        sa.PrimaryKeyConstraint("serial", name=op.f("pk_projects")),
        sa.UniqueConstraint("name", name=op.f("uq_projects_name")),
    )
    op.create_table(
        "members",
        sa.Column("project_serial", _SERIAL, nullable=False),
        sa.Column("user_serial", _SERIAL, nullable=False),
        sa.Column("role", sa.String(length=8), nullable=False),
        *_limits(),
        sa.ForeignKeyConstraint(
            ["project_serial"], ["projects.serial"], name=op.f("fk_members_project_serial")
        ),
        sa.ForeignKeyConstraint(
            ["user_serial"], ["users.serial"], name=op.f("fk_members_user_serial")
        ),
        sa.PrimaryKeyConstraint("project_serial", "user_serial", name=op.f("pk_members")),
    )
    op.create_index("ix_members_user_serial", "members", ["user_serial"], unique=False)
    op.create_table(
        "audit",
        sa.Column("serial", _SERIAL, nullable=False),
        sa.Column("at_ns", sa.BigInteger(), nullable=False),
        sa.Column("who", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("details", sa.Text(), nullable=False),
        sa.Column("peer", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("serial", name=op.f("pk_audit")),
    )
    # The project that jobs have been in all along.
    op.bulk_insert(projects, [{"name": "default", "created_ns": time.time_ns()}])
