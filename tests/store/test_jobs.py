"""The named queries: guarded writes, and lists that show exactly what was asked for."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, create_engine, insert
from sqlalchemy.pool import StaticPool

from updraft.model.access import Principal
from updraft.model.job import new_job_id
from updraft.model.states import TERMINAL, State
from updraft.store import jobs as queries
from updraft.store import postgresql
from updraft.store.jobs import Filter
from updraft.store.tables import jobs, metadata

ME = Principal("uid:1000")
COLLEAGUE = Principal("uid:1001")
OTHERS = [COLLEAGUE, Principal("uid:1000", project="another")]


def job(serial: int, **values: Any) -> dict[str, Any]:
    return {
        "serial": serial,
        "id": f"j{serial:09}",
        "owner": ME.owner,
        "project": ME.project,
        "jurisdiction": "local",
        "submit_key": b"%020d" % serial,
        "attached": False,
        "detached": False,
        "name": "",
        "labels": "{}",
        "pool": "local",
        "command": b"",
        "cpus_milli": 1000,
        "memory_bytes": 0,
        "gpus": 0,
        "retries": 0,
        "priority": 0,
        "keep_alive_ms": 0,
        "grace_ms": 0,
        "state": State.IN_QUEUE,
        "wanted": "run",
        "message": "",
        "created_ns": 0,
        "kept": True,
        **values,
    }


BOTH = ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)]


@pytest.fixture(params=BOTH)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Tables in a database, without rows."""
    if request.param == "postgresql":
        made = postgresql.make_engine(request.getfixturevalue("postgresql_url"), 2)
    else:
        made = create_engine(
            "sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False}
        )
    metadata.create_all(made)
    yield made
    made.dispose()


@contextmanager
def unchanged(engine: Engine) -> Iterator[Connection]:
    """A connection in a transaction that is rolled back."""
    with engine.connect() as connection, connection.begin() as transaction:
        yield connection
        transaction.rollback()


@pytest.fixture
def connection(engine: Engine) -> Iterator[Connection]:
    with unchanged(engine) as made:
        yield made


def add(connection: Connection, *rows: dict[str, Any]) -> None:
    for row in rows:
        queries.insert_job(connection, row, None, [event(row["serial"])])


def event(serial: int) -> dict[str, Any]:
    return {"job_serial": serial, "at_ns": 0, "kind": "IN_QUEUE", "attempt": None, "message": ""}


def attempt(job_serial: int, serial: int, number: int = 1) -> dict[str, Any]:
    return {
        "serial": serial,
        "job_serial": job_serial,
        "task_index": 0,
        "number": number,
        "state": "GRANTED",
        "runner": "local",
        "gpu_ids": "[]",
        "granted_ns": 0,
        "message": "",
    }


def state_of(connection: Connection, serial: int) -> str:
    (row,) = queries.find_serials(connection, [serial])
    return str(row["state"])


@pytest.mark.parametrize("expected", State)
@pytest.mark.parametrize("found", State)
def test_a_guarded_write_happens_only_in_the_expected_state(
    connection: Connection, found: State, expected: State
) -> None:
    add(connection, job(1, state=found), job(2, state=expected))
    wanted = {"state": State.CANCELLED, "message": "moved"}
    assert queries.move_job(connection, 1, (expected,), wanted) == (found is expected)
    (row,) = queries.find_serials(connection, [1])
    assert (row["message"] == "moved") == (found is expected)
    assert state_of(connection, 2) == expected


def test_nothing_leaves_a_terminal_state_by_a_write_to_live_jobs(connection: Connection) -> None:
    add(connection, *(job(serial, state=state) for serial, state in enumerate(State)))
    for serial, state in enumerate(State):
        moved = queries.move_job(connection, serial, queries.LIVE, {"message": "late"})
        assert moved == (state not in TERMINAL)


def test_an_attempt_that_was_superseded_is_not_written(connection: Connection) -> None:
    add(connection, job(1))
    queries.insert_attempt(connection, attempt(1, 10))
    assert queries.move_attempt(connection, 10, ("GRANTED",), {"state": "ENDED"})
    assert not queries.move_attempt(connection, 10, ("GRANTED", "RUNNING"), {"state": "RUNNING"})
    assert not queries.move_attempt(connection, 11, ("GRANTED",), {"state": "RUNNING"})


# Each example leaves the tables empty.
SHARED_ENGINE = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

# As the server takes them: printable.
LABELS = st.dictionaries(
    st.text(min_size=1, max_size=5).filter(lambda key: key.isprintable() and '"' not in key)
    | st.sampled_from(["team", "a.b", "a b", "a[0]", "é", "$", "\\", "a\\u0062", "'", "#-1"]),
    st.text(max_size=3).filter(str.isprintable)
    | st.sampled_from(["1", "null", "true", "é", '"', "\\"]),
    max_size=3,
)


@SHARED_ENGINE
@given(mine=LABELS, others=LABELS)
def test_a_job_is_found_by_any_label_it_has_and_by_no_other(
    engine: Engine, mine: dict[str, str], others: dict[str, str]
) -> None:
    with unchanged(engine) as connection:
        add(connection, job(1, labels=json.dumps(mine)), job(2, labels=json.dumps(others)))
        for key, value in [*mine.items(), *others.items()]:
            found = queries.find_jobs(connection, ME, Filter(labels=((key, value),)))
            expected = {n for n, labels in ((1, mine), (2, others)) if labels.get(key) == value}
            assert {row["serial"] for row in found} == expected, (key, value)


ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "who": st.sampled_from([ME, ME, ME, *OTHERS]),
            "state": st.sampled_from(State),
            "exit_code": st.sampled_from([None, 0, 3]),
            "labels": st.sampled_from([{}, {"team": "a"}, {"team": "b", "x": "1"}]),
        }
    ),
    max_size=12,
)
FILTERS = st.builds(
    Filter,
    states=st.sets(st.sampled_from(State), max_size=3).map(tuple),
    failed=st.booleans(),
    labels=st.sampled_from([(), (("team", "a"),), (("team", "b"), ("x", "1"))]),
    limit=st.integers(1, 5),
    owner=st.sampled_from([None, ME.owner, COLLEAGUE.owner]),
)


def matches(row: dict[str, Any], wanted: Filter) -> bool:
    bad = row["state"] in (State.FAILURE, State.EXPIRED, State.CANCELLED)
    bad = bad or (row["state"] is State.SUCCESS and row["exit_code"] not in (None, 0))
    return (
        row["who"].project == ME.project
        and wanted.owner in (None, row["who"].owner)
        and (not wanted.states or row["state"] in wanted.states)
        and (not wanted.failed or bad)
        and all(row["labels"].get(key) == value for key, value in wanted.labels)
    )


@SHARED_ENGINE
@given(rows=ROWS, wanted=FILTERS)
def test_pages_of_a_list_show_each_match_once_newest_first(
    engine: Engine, rows: list[dict[str, Any]], wanted: Filter
) -> None:
    with unchanged(engine) as connection:
        for serial, row in enumerate(rows, start=1):
            values = {
                "owner": row["who"].owner,
                "project": row["who"].project,
                "state": row["state"],
                "exit_code": row["exit_code"],
                "labels": json.dumps(row["labels"]),
            }
            add(connection, job(serial, **values))
        seen: list[int] = []
        before = None
        while page := queries.find_jobs(connection, ME, wanted, before):
            assert len(page) <= wanted.limit
            seen += (row["serial"] for row in page)
            before = seen[-1]
        expected = [serial for serial, row in enumerate(rows, start=1) if matches(row, wanted)]
        assert seen == expected[::-1]


def test_an_id_is_found_by_its_beginning_in_its_project_only(connection: Connection) -> None:
    add(
        connection,
        job(1, id="abcdefghjk"),
        job(2, id="abc0000000", project="another"),
        job(3, id="abd0000000"),
        job(4, id="abdzzzzzzz"),
    )

    def found(text: str, who: Principal = ME) -> list[int]:
        return sorted(row["serial"] for row in queries.find_job(connection, who, text))

    assert found("abcdefghjk") == [1]
    assert found("abc") == [1]
    assert found("abd") == [3, 4]
    assert len(found("a")) == 2
    assert found("") == []
    for foreign in ("abc0000000", "%", "_bcdefghjk", "abc%", "ABC", "abcdefghjkz", "\0"):
        assert found(foreign) == [], foreign
    assert found("abc", Principal("uid:1000", project="another")) == [2]
    assert found("abcdefghjk", COLLEAGUE) == [1]
    assert found("abc0", Principal("uid:1000", project="a third")) == []


def test_the_same_key_of_one_owner_in_one_project_is_one_job(connection: Connection) -> None:
    key = b"k" * 16
    add(connection, job(1, submit_key=key), job(2, submit_key=key, owner="uid:1001"))
    add(connection, job(4, submit_key=key, project="another"))
    assert queries.find_submitted(connection, ME.owner, key, "another") == "j000000004"
    assert queries.find_submitted(connection, ME.owner, key, "a third") is None
    assert queries.find_submitted(connection, ME.owner, b"k" * 16) == "j000000001"
    assert queries.find_submitted(connection, "uid:1001", b"k" * 16) == "j000000002"
    assert queries.find_submitted(connection, ME.owner, b"l" * 16) is None
    with pytest.raises(Exception, match=r"(?i)unique"), connection.begin_nested():
        connection.execute(insert(jobs).values(job(3, submit_key=b"k" * 16)))


def test_a_new_server_finds_all_that_lives_and_nothing_that_ended(connection: Connection) -> None:
    for serial, state in enumerate(State, start=1):
        add(connection, job(serial, state=state, key_slot=serial * 10))
        queries.insert_attempt(connection, attempt(serial, serial * 100))
        queries.insert_attempt(connection, attempt(serial, serial * 100 + 1, number=2))
        queries.move_attempt(connection, serial * 100, ("GRANTED",), {"state": "LOST"})
    live = [n for n, state in enumerate(State, start=1) if state not in TERMINAL]
    assert [row["serial"] for row in queries.live_jobs(connection)] == live
    assert [row["serial"] for row in queries.live_attempts(connection)] == [
        n * 100 + 1 for n in live
    ]
    assert queries.attempt_counts(connection) == dict.fromkeys(live, 2)
    assert queries.used_key_slots(connection) == {n * 10 for n in live}
    assert queries.last_serials(connection) == (len(State), len(State) * 100 + 1)


def test_ids_are_of_the_documented_form_and_rarely_the_same() -> None:
    ids = {new_job_id() for _ in range(10_000)}
    assert len(ids) == 10_000
    assert all(len(each) == 10 and each.isalnum() and each.islower() for each in ids)
    assert all(each[0].isalpha() for each in ids)
    assert not set("".join(ids)) & set("ilou")
