"""Named queries over pools, runners and the tokens that they join with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, RowMapping, delete, or_, select, update

from updraft.store.tables import join_tokens, pools, runners

Values = dict[str, Any]


def all_pools(connection: Connection) -> Sequence[RowMapping]:
    """Return the pools that administrators made, by name."""
    return connection.execute(select(pools).order_by(pools.c.name)).mappings().all()


def insert_pool(connection: Connection, values: Values) -> None:
    """Store a new pool.  Raises ``IntegrityError`` where there is one of this name."""
    connection.execute(pools.insert(), values)


def update_pool(connection: Connection, name: str, values: Values) -> bool:
    """Change a pool; return whether there is one."""
    statement = update(pools).where(pools.c.name == name).values(**values)
    return connection.execute(statement).rowcount == 1


def delete_pool(connection: Connection, name: str) -> bool:
    """Forget a pool; return whether there was one."""
    return connection.execute(delete(pools).where(pools.c.name == name)).rowcount == 1


def all_runners(connection: Connection) -> Sequence[RowMapping]:
    """Return the runners that have joined, by name."""
    return connection.execute(select(runners).order_by(runners.c.name)).mappings().all()


def insert_runner(connection: Connection, values: Values) -> None:
    """Store a runner.  Raises ``IntegrityError`` where there is one of this name."""
    connection.execute(runners.insert(), values)


def update_runner(connection: Connection, name: str, values: Values) -> bool:
    """Change a runner; return whether there is one."""
    statement = update(runners).where(runners.c.name == name).values(**values)
    return connection.execute(statement).rowcount == 1


def delete_runner(connection: Connection, name: str) -> bool:
    """Forget a runner; return whether there was one."""
    return connection.execute(delete(runners).where(runners.c.name == name)).rowcount == 1


def all_join_tokens(connection: Connection) -> Sequence[RowMapping]:
    """Return the join tokens, newest first."""
    statement = select(join_tokens).order_by(join_tokens.c.created_ns.desc())
    return connection.execute(statement).mappings().all()


def insert_join_token(connection: Connection, values: Values) -> None:
    """Store a join token."""
    connection.execute(join_tokens.insert(), values)


def delete_useless_join_tokens(connection: Connection, now_ns: int) -> None:
    """Forget the join tokens that are past their time or used up."""
    connection.execute(
        delete(join_tokens).where(
            or_(
                join_tokens.c.expires_ns <= now_ns,
                join_tokens.c.used >= join_tokens.c.most_uses,
            )
        )
    )


def delete_join_tokens_of(connection: Connection, pool: str) -> None:
    """Forget the tokens with which machines join a pool."""
    connection.execute(delete(join_tokens).where(join_tokens.c.pool == pool))


def find_join_token(connection: Connection, credential: str) -> RowMapping | None:
    """Return a join token's row."""
    statement = select(join_tokens).where(join_tokens.c.credential == credential)
    return connection.execute(statement).mappings().one_or_none()


def use_join_token(connection: Connection, credential: str, now_ns: int) -> bool:
    """Count a use; return whether there was one left, in time."""
    statement = (
        update(join_tokens)
        .where(
            join_tokens.c.credential == credential,
            join_tokens.c.expires_ns > now_ns,
            or_(join_tokens.c.most_uses.is_(None), join_tokens.c.used < join_tokens.c.most_uses),
        )
        .values(used=join_tokens.c.used + 1)
    )
    return connection.execute(statement).rowcount == 1


def delete_join_token(connection: Connection, credential: str) -> bool:
    """Forget a join token; return whether there was one."""
    statement = delete(join_tokens).where(join_tokens.c.credential == credential)
    return connection.execute(statement).rowcount == 1
