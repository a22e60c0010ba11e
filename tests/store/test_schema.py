"""The schema: what the migrations make is what the code expects, from any database it may find."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, create_engine, inspect, text

import updraft.store
from updraft import errors
from updraft.store import schema
from updraft.store.database import Database
from updraft.store.tables import metadata


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def engine(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    """The engine as the server has it: its transactions are not those of the plain driver."""
    url = f"sqlite:///{tmp_path / 'updraft.db'}"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgresql_url")

    async def opened() -> Database:
        return Database(url)

    database = asyncio.run(opened())
    yield database.engine
    asyncio.run(database.close())


def revision(engine: Engine) -> str | None:
    with engine.connect() as connection:
        return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def test_the_migrations_make_the_tables_that_the_code_has(engine: Engine) -> None:
    schema.upgrade(engine)
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        assert compare_metadata(context, metadata) == []


def test_names_of_constraints_are_those_that_a_later_migration_will_look_for(
    engine: Engine, tmp_path: Path
) -> None:
    schema.upgrade(engine)
    direct = create_engine(f"sqlite:///{tmp_path / 'direct.db'}")
    metadata.create_all(direct)
    if engine.name == "postgresql":
        with engine.connect() as connection:
            odd = "SELECT conname FROM pg_constraint WHERE conname !~ '^(pk|uq|fk|alembic)_'"
            known = "AND connamespace = current_schema()::regnamespace"
            assert connection.execute(text(f"{odd} {known}")).all() == []
    for table in metadata.tables:
        names = []
        for look in (inspect(engine), inspect(direct)):
            names.append({str(each["name"]) for each in look.get_unique_constraints(table)})
            names[-1] |= {str(each["name"]) for each in look.get_foreign_keys(table)}
            names[-1].add(str(look.get_pk_constraint(table)["name"]))
        assert names[0] == names[1]
        assert "None" not in names[0]
    direct.dispose()


def test_the_revisions_that_the_code_names_are_those_that_there_are() -> None:
    config = Config()
    folder = Path(next(iter(updraft.store.__path__)), "migrations")
    config.set_main_option("script_location", str(folder))
    scripts = ScriptDirectory.from_config(config)
    assert scripts.get_heads() == [schema.HEAD]
    revisions = [script.revision for script in scripts.walk_revisions()]
    assert tuple(reversed(revisions)) == schema.KNOWN
    assert len(list((folder / "versions").glob("*.py"))) == len(revisions)


def test_an_empty_database_is_brought_to_the_head_and_then_left_alone(engine: Engine) -> None:
    schema.upgrade(engine)
    assert revision(engine) == schema.HEAD
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE kept (x INTEGER)"))
    schema.upgrade(engine)
    assert revision(engine) == schema.HEAD
    assert inspect(engine).has_table("kept")


def test_a_database_of_a_newer_release_is_refused_and_not_touched(
    engine: Engine, tmp_path: Path
) -> None:
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)"))
        connection.execute(text("INSERT INTO alembic_version VALUES ('9999')"))
    sqlite = engine.name == "sqlite"
    before = (tmp_path / "updraft.db").read_bytes() if sqlite else b""
    with pytest.raises(errors.WrongVersion, match="9999"):
        schema.upgrade(engine)
    assert inspect(engine).get_table_names() == ["alembic_version"]
    if sqlite:
        assert (tmp_path / "updraft.db").read_bytes() == before


def test_jobs_of_the_release_before_are_kept_with_all_that_is_theirs(engine: Engine) -> None:
    migrate(engine, "0001")
    with engine.begin() as connection:
        for serial in (1, 2):
            connection.execute(OLD_JOB, {"serial": serial, "key": b"%08d" % serial})
            connection.execute(OLD_ATTEMPT, {"serial": serial})
            connection.execute(OLD_EVENT, {"serial": serial})
    schema.upgrade(engine)
    with engine.connect() as connection:
        for table in ("jobs", "attempts", "events"):
            count = connection.execute(text(f"SELECT count(*) FROM {table}")).scalar()
            assert count == 2, table
        assert connection.execute(text("SELECT name FROM projects")).scalars().all() == ["default"]
        if engine.name != "sqlite":
            return
        assert connection.execute(text("PRAGMA foreign_keys")).scalar() == 1
        indexes = dict(
            connection.execute(
                text("SELECT name, sql FROM sqlite_master WHERE tbl_name = 'jobs' AND sql <> ''")
            )
            .tuples()
            .all()
        )
        assert "WHERE source IS NOT NULL" in indexes["ix_jobs_source"]
        assert {"ix_jobs_project_serial", "ix_jobs_state_serial"} <= set(indexes)


def migrate(engine: Engine, revision: str) -> None:
    """Bring a database to an earlier release's schema."""
    config = Config()
    folder = Path(next(iter(updraft.store.__path__)), "migrations")
    config.set_main_option("script_location", str(folder))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


OLD_JOB = text(
    "INSERT INTO jobs (serial, id, owner, project, jurisdiction, submit_key, attached, detached,"
    " name, labels, pool, command, cpus_milli, memory_bytes, gpus, retries, priority,"
    " keep_alive_ms, grace_ms, state, wanted, message, created_ns, kept) VALUES (:serial,"
    " 'id' || CAST(:serial AS VARCHAR), 'uid:1', 'default', 'local', :key, false, false, '', '{}',"
    " 'local', :key, 0, 0, 0, 0, 0, 0, 0, 'SUCCESS', 'run', '', 0, true)"
)
OLD_ATTEMPT = text(
    "INSERT INTO attempts (serial, job_serial, task_index, number, state, runner, gpu_ids,"
    " granted_ns, message) VALUES (:serial, :serial, 0, 1, 'ENDED', 'local', '[]', 0, '')"
)
OLD_EVENT = text(
    "INSERT INTO events (serial, job_serial, at_ns, kind, message)"
    " VALUES (:serial, :serial, 0, 'IN_QUEUE', '')"
)


def test_a_migration_that_fails_leaves_nothing_half_done(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE events (another_programs INTEGER)"))
    with pytest.raises(Exception, match="already exists"):
        schema.upgrade(engine)
    assert inspect(engine).get_table_names() == ["events"]
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE events"))
    schema.upgrade(engine)
    assert revision(engine) == schema.HEAD


def test_a_usual_start_does_not_pay_for_alembic(engine: Engine) -> None:
    schema.upgrade(engine)
    program = (
        "import sys\n"
        "from sqlalchemy import create_engine\n"
        "from updraft.store import schema\n"
        "schema.upgrade(create_engine(sys.argv[1]))\n"
        "assert 'alembic' not in sys.modules\n"
    )
    url = engine.url.render_as_string(hide_password=False)
    subprocess.run([sys.executable, "-c", program, url], check=True, timeout=30)
