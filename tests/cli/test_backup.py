"""``updraft admin backup`` and ``restore``: what was there comes back, whole or not at all."""

import gzip
import io
import json
import os
import shutil
import sqlite3
import stat
import tarfile
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import text

from tests import postgresql
from tests.cli.calling import ask, call, ended, submit, updraft, wait_state
from updraft import errors, settings
from updraft.configuration import Configuration
from updraft.configuration.schema import Backup
from updraft.server.loops.backups import back_up_if_due
from updraft.server.services import backups
from updraft.store.postgresql import make_engine
from updraft.testing.instance import Instance, instance


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Instance]:
    with instance(tmp_path / "fresh") as made:
        yield made


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Instance]:
    with instance(tmp_path / "own") as made:
        assert made.run("urun", "-q", "true").returncode == 0
        yield made


def members(file: Path) -> dict[str, bytes]:
    with tarfile.open(file) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]


def test_what_a_server_knows_comes_back_in_a_fresh_one(
    own: Instance, fresh: Instance, tmp_path: Path
) -> None:
    done = ended(own, "--name", "kept", "sh", "-c", "echo said; exit 3")
    runs = submit(own, "--name", "lost", "--retries", "0", "sleep", "1000")
    wait_state(own, runs, "RUNNING")
    file = tmp_path / "a.tar.gz"
    made = ask(own, "admin", "backup", str(file), "--logs")
    assert (made["jobs"], made["logs"], made["keys"]) == (3, True, False)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    later = ended(own, "true")
    found = members(file)
    assert "environment.keys" not in found
    assert json.loads(found["manifest.json"])["files"].keys() == {"updraft.db"}

    said = updraft(fresh, "admin", "restore", str(file))
    assert (said.code, said.err) == (0, "")
    assert stat.S_IMODE((fresh.state / "updraft.db").stat().st_mode) == 0o600
    assert call(fresh, "urun", "-q", "true").code == 0
    assert said.out.startswith("restored 3 jobs as of ")
    shown = {job["id"]: job for job in ask(fresh, "job", "list", "--all")}
    assert later not in shown
    assert (shown[done]["state"], shown[done]["exit_code"]) == ("SUCCESS", 3)
    assert updraft(fresh, "logs", done).out == "said\n"
    # Its runner is another one, which never heard of it.
    assert wait_state(fresh, runs, "FAILURE", "CANCELLED")["ok"] is False
    assert call(fresh, "urun", "echo", "goes on").out == "goes on\n"
    # No number of an attempt is given out twice.
    with closing(sqlite3.connect(fresh.state / "updraft.db")) as connection:
        (highest,) = connection.execute("SELECT max(serial) FROM attempts").fetchone()
    assert highest > 1 << 20


def test_a_backup_that_is_made_under_load_is_consistent(own: Instance, tmp_path: Path) -> None:
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            call(own, "ubatch", "true")

    thread = threading.Thread(target=load)
    thread.start()
    try:
        counts = [
            ask(own, "admin", "backup", str(tmp_path / f"{n}.tar.gz"))["jobs"] for n in range(3)
        ]
    finally:
        stop.set()
        thread.join()
    assert counts == sorted(counts)
    for n, count in enumerate(counts):
        path = tmp_path / f"{n}.db"
        path.write_bytes(members(tmp_path / f"{n}.tar.gz")["updraft.db"])
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert connection.execute("SELECT count(*) FROM jobs").fetchone() == (count,)
            without = (
                "SELECT count(*) FROM jobs WHERE serial NOT IN (SELECT job_serial FROM events)"
            )
            assert connection.execute(without).fetchone() == (0,)


def test_a_restore_is_refused_while_a_server_runs_and_over_what_is_there(
    own: Instance, tmp_path: Path
) -> None:
    job = ended(own, "true")
    file = tmp_path / "a.tar.gz"
    assert updraft(own, "admin", "backup", str(file)).code == 0
    after = ended(own, "true")
    said = updraft(own, "admin", "restore", str(file), "--force")
    assert said.error == (
        "updraft: the server runs, or its runner does; stop them: updraft stop, or under systemd: "
        "systemctl stop updraft-server"
    )
    assert said.code == 1
    assert updraft(own, "stop").code == 0
    before = (own.state / "updraft.db").read_bytes()
    said = updraft(own, "admin", "restore", str(file))
    assert "updraft.db is there already; restore into a fresh one" in said.error
    assert (own.state / "updraft.db").read_bytes() == before

    said = updraft(own, "admin", "restore", str(file), "--force")
    assert said.code == 0
    assert call(own, "urun", "-q", "true").code == 0
    shown = [found["id"] for found in ask(own, "job", "list", "--all")]
    assert job in shown
    assert after not in shown
    (kept,) = own.state.glob("updraft.db.replaced-*")
    assert said.out.endswith(f"; what was there is kept in {kept}, to be removed by you\n")
    with closing(sqlite3.connect(kept)) as connection:
        ids = {identity for (identity,) in connection.execute("SELECT id FROM jobs")}
    assert {job, after} <= ids


def test_keys_are_there_if_asked_for_and_waiting_jobs_then_run(
    own: Instance, fresh: Instance, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    cpus = ask(own, "status")["runner"]["cpus"]
    holds = submit(own, "--retries", "0", "--cpus", str(cpus), "sh", "-c", f"read x < {gate}")
    wait_state(own, holds, "RUNNING")
    own.environment["SECRET_OF_THE_TEST"] = "geheim"
    waits = submit(own, "--cpus", str(cpus), "sh", "-c", 'echo "$SECRET_OF_THE_TEST"')
    file = tmp_path / "a.tar.gz"
    assert updraft(own, "admin", "backup", str(file), "--keys").code == 0
    assert len(members(file)["environment.keys"]) > 0
    assert b"geheim" not in members(file)["updraft.db"]
    assert updraft(fresh, "admin", "restore", str(file)).code == 0
    assert call(fresh, "urun", "true").code == 0
    assert wait_state(fresh, waits, "SUCCESS")["ok"] is True
    assert updraft(fresh, "logs", waits).out == "geheim\n"


def test_a_file_that_is_there_is_not_overwritten(own: Instance, tmp_path: Path) -> None:
    ended(own, "true")
    file = tmp_path / "precious"
    file.write_text("precious")
    said = updraft(own, "admin", "backup", str(file))
    assert said.error == f"updraft: {file} exists; choose another name, or remove it"
    assert file.read_text() == "precious"
    assert "there is no folder" in updraft(own, "admin", "backup", "/nonexistent/x").error


def test_without_a_database_there_is_nothing_to_back_up(fresh: Instance, tmp_path: Path) -> None:
    said = updraft(fresh, "admin", "backup", str(tmp_path / "x"))
    assert said.code == 1
    assert "nothing to back up" in said.error
    assert list(tmp_path.glob("x*")) == []


def repacked(file: Path, target: Path, change: dict[str, bytes], extra: str = "") -> Path:
    with tarfile.open(target, "w:gz") as tar:
        for name, data in {**members(file), **change, **({extra: b"x"} if extra else {})}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return target


def test_what_is_no_whole_backup_is_refused_and_changes_nothing(
    own: Instance, fresh: Instance, tmp_path: Path
) -> None:
    ended(own, "true")
    file = tmp_path / "good"
    assert updraft(own, "admin", "backup", str(file), "--logs").code == 0
    good = members(file)
    bad = {
        "changed": repacked(file, tmp_path / "1", {"updraft.db": good["updraft.db"] + b"x"}),
        "climbing": repacked(file, tmp_path / "2", {}, "logs/../../evil"),
        "absolute": repacked(file, tmp_path / "3", {}, "/evil"),
        "unknown": repacked(file, tmp_path / "4", {}, "server.sock"),
    }
    (tmp_path / "5").write_bytes(file.read_bytes()[:-100])
    (tmp_path / "6").write_bytes(gzip.compress(b"hello"))
    (tmp_path / "7").write_text("hello")
    for path in (*bad.values(), tmp_path / "5", tmp_path / "6", tmp_path / "7"):
        said = updraft(fresh, "admin", "restore", str(path))
        assert said.error == (f"updraft: {path} is no whole backup of Updraft; take another one"), (
            path
        )
        assert said.code == 1
        assert not (fresh.state / "updraft.db").exists()
        assert [p.name for p in fresh.state.iterdir() if p.name.startswith(".")] == []
    manifest = {**json.loads(good["manifest.json"]), "schema": "9999", "updraft": "99.0"}
    newer = repacked(file, tmp_path / "8", {"manifest.json": json.dumps(manifest).encode()})
    assert "made by Updraft 99.0, which is newer" in updraft(
        fresh, "admin", "restore", str(newer)
    ).error  # fmt: skip
    assert not (tmp_path / "evil").exists()


def test_regular_backups_are_made_when_due_and_the_old_ones_go(
    own: Instance, tmp_path: Path
) -> None:
    ended(own, "true")
    folders = settings.folders(own.environment)
    folder = tmp_path / "backups"
    wanted = Configuration(backup=Backup(folder=str(folder), every=3600, keep=2))
    now = 1_900_000_000.0
    folder.mkdir()
    own_copy = folder / "updraft-before-upgrade.tar.gz"
    own_copy.touch()
    os.utime(own_copy, (0, 0))
    made = []
    for step in range(4):
        file = back_up_if_due(folders, wanted, clock=lambda: now)  # noqa: B023
        assert file is not None
        os.utime(file, (now, now))
        made.append(file)
        now += 3599
        assert back_up_if_due(folders, wanted, clock=lambda: now) is None, step  # noqa: B023
        now += 1
    assert sorted(map(str, folder.iterdir())) == [*made[-2:], str(own_copy)]


# -- PostgreSQL

HAS_POSTGRES = postgresql.programs() is not None and shutil.which("pg_dump") is not None
needs_postgres = pytest.mark.skipif(not HAS_POSTGRES, reason="no PostgreSQL")


@pytest.fixture(scope="module")
def cluster() -> Iterator[postgresql.Cluster]:
    with postgresql.cluster() as made:
        yield made


def fill(database: str) -> None:
    backups._psql(
        database,
        "CREATE TABLE alembic_version (version_num text);"
        "INSERT INTO alembic_version VALUES ('0001');"
        "CREATE TABLE jobs (serial bigint); INSERT INTO jobs VALUES (1), (2);"
        "CREATE TABLE attempts (serial bigint, state text);"
        "INSERT INTO attempts VALUES (1, 'ENDED'), (2, 'RUNNING')",
    )


@pytest.fixture
def folders(tmp_path: Path) -> settings.Folders:
    return settings.Folders(str(tmp_path / "state"), "/nonexistent")


@needs_postgres
def test_a_postgresql_database_comes_back_too(
    cluster: postgresql.Cluster, folders: settings.Folders, tmp_path: Path
) -> None:
    one, two = (cluster.url(cluster.make_database()) for _ in range(2))
    fill(one)
    file = tmp_path / "pg.tar.gz"
    Path(folders.state).mkdir(mode=0o700)
    assert backups.make(folders, one, file).jobs == 2
    assert postgresql.PASSWORD.encode() not in b"".join(members(file).values())
    restored = backups.restore(folders, two, file)
    assert (restored.jobs, restored.replaced) == (2, "")
    assert backups._psql(two, "SELECT max(serial) FROM attempts") == str((1 << 20) + 1)
    with pytest.raises(errors.Conflict, match="has 3 tables already"):
        backups.restore(folders, two, file)
    with pytest.raises(errors.BadRequest, match="of a server with postgresql"):
        backups.restore(folders, "", file)


@needs_postgres
def test_a_postgresql_database_that_is_replaced_is_kept_and_can_be_put_back(
    cluster: postgresql.Cluster, folders: settings.Folders, tmp_path: Path
) -> None:
    database = cluster.url(cluster.make_database())
    fill(database)
    file = tmp_path / "pg.tar.gz"
    Path(folders.state).mkdir(mode=0o700)
    backups.make(folders, database, file)
    backups._psql(database, "INSERT INTO jobs VALUES (3)")
    Path(folders.keys).write_text("key")

    replaced = Path(backups.restore(folders, database, file, force=True).replaced)
    assert replaced.parent == Path(folders.state)
    assert stat.S_IMODE(replaced.stat().st_mode) == 0o600
    assert backups._psql(database, "SELECT count(*) FROM jobs") == "2"
    Path(folders.keys).unlink()
    assert backups.restore(folders, database, replaced, force=True).jobs == 3
    assert backups._psql(database, "SELECT count(*) FROM jobs") == "3"
    assert Path(folders.keys).read_text() == "key"


@needs_postgres
def test_a_postgresql_database_that_cannot_be_kept_is_not_replaced(
    cluster: postgresql.Cluster, folders: settings.Folders, tmp_path: Path
) -> None:
    database, other = (cluster.url(cluster.make_database()) for _ in range(2))
    fill(database)
    file = tmp_path / "pg.tar.gz"
    Path(folders.state).mkdir(mode=0o700)
    backups.make(folders, database, file)
    backups._psql(other, "CREATE TABLE jobs (of_somebody_else text)")
    with pytest.raises(errors.Conflict, match=r"cannot be kept .*; restore into an empty one"):
        backups.restore(folders, other, file, force=True)
    assert backups._psql(other, "SELECT count(of_somebody_else) FROM jobs") == "0"


@needs_postgres
def test_the_password_may_be_in_a_file_that_the_url_names(
    cluster: postgresql.Cluster, folders: settings.Folders, tmp_path: Path
) -> None:
    database = cluster.url(cluster.make_database())
    fill(database)
    passfile = tmp_path / "pgpass"
    passfile.touch(mode=0o600)
    passfile.write_text(f"*:*:*:*:{postgresql.PASSWORD}\n")
    without = database.replace(f":{postgresql.PASSWORD}@", "@") + f"?passfile={passfile}"
    Path(folders.state).mkdir(mode=0o700)
    assert backups.make(folders, without, tmp_path / "pg.tar.gz").jobs == 2
    with make_engine(without, 0).connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM jobs")).scalar_one() == 2


@needs_postgres
def test_a_database_that_is_away_is_said_in_one_line_with_the_mend(
    folders: settings.Folders, tmp_path: Path
) -> None:
    Path(folders.state).mkdir(mode=0o700)
    nobody = "postgresql://me:geheim@127.0.0.1:1/db"
    with pytest.raises(errors.Unavailable) as raised:
        backups.make(folders, nobody, tmp_path / "x")
    assert raised.value.message.startswith("cannot use the database: connection to server at ")
    assert raised.value.message.endswith("; see that it runs and that server.database is right")
    assert "\n" not in raised.value.message
    assert "Is the server running" not in raised.value.message
    assert not (tmp_path / "x").exists()
