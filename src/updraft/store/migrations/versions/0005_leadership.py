"""who may write, and how many groups it has committed; names in the order of their bytes."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_BYTEWISE = {
    ("jobs", "id"): "VARCHAR(16)",
    ("pools", "name"): "VARCHAR(64)",
    ("runners", "name"): "VARCHAR(64)",
    ("users", "name"): "TEXT",
    ("projects", "name"): "TEXT",
}


def upgrade() -> None:
    leadership = op.create_table(
        "leadership",
        sa.Column("one", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("groups", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("one", name=op.f("pk_leadership")),
    )
    op.bulk_insert(leadership, [{"one": 1, "epoch": 0, "groups": 0}])
    # SQLite compares bytes; PostgreSQL does as the database's language wants, unless told.
    if op.get_bind().dialect.name == "postgresql":
        for (table, column), kind in _BYTEWISE.items():
            op.execute(f'ALTER TABLE {table} ALTER COLUMN {column} TYPE {kind} COLLATE "C"')
