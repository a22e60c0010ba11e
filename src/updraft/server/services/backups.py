"""Copies of what the server must not lose, made while it serves, and their way back.

A backup is a tar with ``manifest.json`` first, the database, and what was asked for beside it.  It
is written under another name, flushed and then renamed, so a file with the right name is whole.
SQLite's own backup interface reads one consistent state while the server goes on writing;
PostgreSQL's is ``pg_dump``'s.  The keys of stored environments are left out unless asked for: a
backup without them gives no environment away, and the jobs that had not ended fail after a restore
and say why.
"""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import shutil
import sqlite3
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import quote, unquote, urlsplit

import updraft
from updraft import bootstrap, errors
from updraft.settings import Folders
from updraft.store import schema

FORMAT = 1
_MANIFEST = "manifest.json"
_SQLITE = "updraft.db"
_POSTGRES = "database.pgdump"
_KEYS = "environment.keys"
_LOGS = "logs"
_MAX_MANIFEST = 1 << 20
_BLOCK = 1 << 20
_NO_CONNECTION = 2
"""What psql exits with when it got no connection, or lost it."""
_JUMP = 1 << 20
"""Runners know attempts that were granted after the backup; no new one gets such a number."""


@dataclass(frozen=True, slots=True)
class Backup:
    """What a backup holds."""

    file: str
    created: str
    jobs: int
    size_bytes: int
    logs: bool
    keys: bool
    replaced: str = ""
    """Of a restore: the file that keeps the database that was there."""


def make(
    folders: Folders, database: str, file: Path, *, logs: bool = False, keys: bool = False
) -> Backup:
    """Write a backup to ``file``, which must not exist.  ``database``: ``server.database``.

    Raises ``errors.UpdraftError``.
    """
    if os.path.lexists(file):
        raise errors.Conflict(f"{file} exists; choose another name, or remove it")
    if not file.parent.is_dir():
        raise errors.BadRequest(f"there is no folder {file.parent}; make it first")
    with _temporary(file.parent) as folder:
        copy, about = _copy_postgres(database, folder) if database else _copy_sqlite(
            folders.database, folder
        )  # fmt: skip
        parts = [(copy, copy.name)]
        if keys:
            parts += _copy_keys(folders, folder)
        manifest = {
            "format": FORMAT,
            "updraft": updraft.__version__,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "database": "postgresql" if database else "sqlite",
            **about,
            "logs": logs,
            "files": {name: {"sha256": _digest(path)} for path, name in parts},
        }
        partial = folder / "partial"
        _write_tar(partial, manifest, parts, Path(folders.logs) if logs else None)
        try:
            os.link(partial, file)  # unlike a rename, it replaces nothing that came meanwhile
        except PermissionError:  # a file system without links
            partial.rename(file)
        _flush_folder(file.parent)
    size = file.stat().st_size
    return Backup(str(file), manifest["created"], about["jobs"], size, logs, keys)


def restore(folders: Folders, database: str, file: Path, *, force: bool = False) -> Backup:
    """Put a backup's contents into place; ``force``: also where there are jobs already.

    The database that was there is kept in a file of the state folder: SQLite's under another name,
    PostgreSQL's as a backup.  Raises ``errors.UpdraftError``, and has changed nothing then.
    """
    bootstrap.prepare_state(folders)
    with _alone(folders), _temporary(Path(folders.state)) as folder:
        manifest = _unpack(file, folder)
        backend = "postgresql" if database else "sqlite"
        if manifest["database"] != backend:
            raise errors.BadRequest(
                f"{file} is of a server with {manifest['database']}, and this one has {backend}; "
                "set server.database to one of the same kind"
            )
        in_place = _in_place(database, folders.database)
        if in_place and not force:
            raise errors.Conflict(
                f"{in_place}; restore into a fresh one, or replace what is there: --force"
            )
        if not database:
            _prepare_sqlite(folder / _SQLITE)
        replaced = _keep(folders, database) if in_place else ""
        # The database last: until then nothing knows of the rest.
        for found in folder.glob(f"{_KEYS}*"):
            _move(found, Path(folders.keys).with_name(found.name))
        if (folder / _LOGS).exists():
            shutil.copytree(folder / _LOGS, folders.logs, dirs_exist_ok=True)
        if database:
            _restore_postgres(database, folder / _POSTGRES, clean=bool(in_place))
        else:
            _restore_sqlite(folders.database, folder / _SQLITE, replaced)
        _flush_folder(Path(folders.state))
    keys = any(name.startswith(_KEYS) for name in manifest["files"])
    size = file.stat().st_size
    jobs, logs = manifest["jobs"], manifest["logs"]
    return Backup(str(file), manifest["created"], jobs, size, logs, keys, replaced)


def _keep(folders: Folders, database: str) -> str:
    """Return the file that what is there goes to; PostgreSQL's is copied to it here."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
    if not database:
        return f"{folders.database}.replaced-{stamp}"
    # A schema renamed would need more rights than its user may have, and take extensions with it.
    file = Path(folders.state) / f"replaced-{stamp}.tar.gz"
    try:
        make(folders, database, file, keys=True)
    except errors.UpdraftError as error:
        raise errors.Conflict(
            f"what is in the database cannot be kept ({error.message}); restore into an empty one"
        ) from error
    return str(file)


def _copy_keys(folders: Folders, folder: Path) -> list[tuple[Path, str]]:
    """Copy the files of keys, which a server goes on writing, and return them with their names."""
    there = Path(folders.keys)
    copies: list[tuple[Path, str]] = []
    for found in sorted(there.parent.glob(f"{there.name}*")):
        copy = folder / found.name
        copy.touch(mode=0o600)
        copy.write_bytes(found.read_bytes())
        copies.append((copy, found.name))
    return copies


# -- the file


def _write_tar(
    path: Path, manifest: dict[str, Any], parts: list[tuple[Path, str]], logs: Path | None
) -> None:
    with _private(path) as raw:
        with (
            gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=1, filename="", mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
        ):
            text = json.dumps(manifest, indent=2).encode()
            info = tarfile.TarInfo(_MANIFEST)
            info.size, info.mode = len(text), 0o600
            tar.addfile(info, BytesIO(text))
            for part, name in parts:
                _add(tar, part, name)
            if logs is not None:
                for found in sorted(path for path in logs.rglob("*") if path.is_file()):
                    _add(tar, found, f"{_LOGS}/{found.relative_to(logs)}")
        raw.flush()
        os.fsync(raw.fileno())


def _add(tar: tarfile.TarFile, path: Path, name: str) -> None:
    """Add a file as long as it is now: a log may grow meanwhile, or be gone already."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(fd)
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.mtime = status.st_size, 0o600, status.st_mtime
        tar.addfile(info, file)


def _unpack(file: Path, folder: Path) -> dict[str, Any]:
    """Unpack and check a backup; return its manifest."""
    broken = errors.BadRequest(f"{file} is no whole backup of Updraft; take another one")
    try:
        with tarfile.open(file, "r:gz") as tar:
            manifest = _manifest(tar, broken)
            for member in tar:
                _unpack_member(tar, member, manifest, folder, broken)
    except FileNotFoundError as error:
        raise errors.NotFound(f"there is no file {file}") from error
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, ValueError, KeyError) as error:
        raise broken from error
    except OSError as error:
        raise errors.Unavailable(f"cannot read {file}: {error.strerror}") from error
    for name, about in manifest["files"].items():
        if not (folder / name).exists() or _digest(folder / name) != about["sha256"]:
            raise broken
    return manifest


def _manifest(tar: tarfile.TarFile, broken: errors.BadRequest) -> dict[str, Any]:
    first = tar.next()
    if first is None or first.name != _MANIFEST or first.size > _MAX_MANIFEST:
        raise broken
    opened = tar.extractfile(first)
    manifest: dict[str, Any] = json.loads(opened.read()) if opened is not None else {}
    if manifest["format"] != FORMAT or manifest["schema"] not in schema.KNOWN:
        raise errors.WrongVersion(
            f"the backup was made by Updraft {manifest['updraft']}, which is newer; install that"
        )
    return manifest


def _unpack_member(
    tar: tarfile.TarFile,
    member: tarfile.TarInfo,
    manifest: dict[str, Any],
    folder: Path,
    broken: errors.BadRequest,
) -> None:
    """Unpack one file, by its own name and nowhere else."""
    parts = PurePosixPath(member.name).parts
    known = member.name in manifest["files"] or (len(parts) > 1 and parts[0] == _LOGS)
    if member.name == _MANIFEST and member.isreg():
        return
    if not member.isreg() or not known or ".." in parts or member.name.startswith("/"):
        raise broken
    target = folder.joinpath(*parts)
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    opened = tar.extractfile(member)
    if opened is None:
        raise broken
    with opened, _private(target) as out:
        shutil.copyfileobj(opened, out, _BLOCK)
        out.flush()
        os.fsync(out.fileno())


# -- SQLite


def _in_place(database: str, path: str) -> str:
    """Return what is where a backup is to go; empty for nothing."""
    if not database:
        return f"{path} is there already" if Path(path).exists() else ""
    others = _psql(
        database,
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid() "
        "AND backend_type = 'client backend'",
    )
    if others != "0":
        raise errors.Conflict("the database is in use; stop every server that uses it")
    count = _psql(database, "SELECT count(*) FROM pg_tables WHERE schemaname = current_schema()")
    return f"the database has {count} tables already" if count != "0" else ""


def _open_sqlite(path: str | Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True, timeout=30)


def _copy_sqlite(path: str, folder: Path) -> tuple[Path, dict[str, Any]]:
    copy = folder / _SQLITE
    copy.touch(mode=0o600)
    try:
        # In one step: readers do not hold writers up in WAL mode, and a change starts nothing anew.
        with closing(_open_sqlite(path)) as source, closing(_open_sqlite(copy)) as target:
            source.backup(target)
            target.execute("PRAGMA journal_mode=DELETE")
    except sqlite3.Error as error:
        if not Path(path).exists():
            raise errors.NotFound(f"there is no database {path} yet; nothing to back up") from error
        raise errors.Unavailable(f"cannot copy the database {path}: {error}") from error
    return copy, _check_sqlite(copy)


def _check_sqlite(path: Path) -> dict[str, Any]:
    """Return schema and number of jobs of a database that is sound."""
    try:
        with closing(_open_sqlite(path)) as connection:
            (verdict,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
            (revision,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
            (jobs,) = connection.execute("SELECT count(*) FROM jobs").fetchone()
    except (sqlite3.Error, TypeError) as error:
        raise errors.Unavailable(f"the copied database cannot be used: {error}") from error
    if verdict != "ok":
        raise errors.Unavailable(f"the database is damaged: {verdict}")
    return {"schema": revision, "jobs": jobs}


def _prepare_sqlite(copy: Path) -> None:
    _check_sqlite(copy)
    with closing(_open_sqlite(copy)) as connection, connection:
        connection.execute(_JUMP_STATEMENT, (_JUMP,))


def _restore_sqlite(path: str, copy: Path, replaced: str) -> None:
    there = Path(path)
    if there.exists():
        with closing(_open_sqlite(there)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        there.rename(replaced)
    for rest in ("-wal", "-shm"):
        Path(path + rest).unlink(missing_ok=True)
    copy.rename(there)


_JUMP_STATEMENT = (
    "UPDATE attempts SET serial = serial + ? WHERE serial = (SELECT serial FROM attempts "
    "ORDER BY state IN ('ENDED', 'LOST') DESC, serial DESC LIMIT 1)"
)
"""The next attempt's number follows the highest; events and jobs know attempts by another one."""


# -- PostgreSQL, by its own tools


def _copy_postgres(url: str, folder: Path) -> tuple[Path, dict[str, Any]]:
    copy = folder / _POSTGRES
    about = {
        "schema": _psql(url, "SELECT version_num FROM alembic_version"),
        "jobs": int(_psql(url, "SELECT count(*) FROM jobs")),
    }
    _run(url, ["pg_dump", "--format=custom", "--no-owner", "--no-privileges", f"--file={copy}"])
    copy.chmod(0o600)
    return copy, about


def _restore_postgres(url: str, copy: Path, *, clean: bool) -> None:
    how = ["--single-transaction", "--exit-on-error", "--no-owner", "--no-privileges"]
    how += ["--clean", "--if-exists"] if clean else []
    _run(url, ["pg_restore", *how, str(copy)])
    _psql(url, _JUMP_STATEMENT.replace("?", str(_JUMP)))


def _psql(url: str, statement: str) -> str:
    return _run(
        url, ["psql", "--no-psqlrc", "--tuples-only", "--no-align", "-v", "ON_ERROR_STOP=1", "-c",
              statement]
    ).strip()  # fmt: skip


def _run(url: str, command: list[str]) -> str:
    """Run a tool of PostgreSQL's; the password goes by the environment, where only we see it."""
    if shutil.which(command[0]) is None:
        raise errors.Unsupported(
            f"{command[0]} is not installed; install PostgreSQL's client tools "
            "(Debian: postgresql-client)"
        )
    parts = urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    name = user.partition(":")[0]
    bare = parts._replace(scheme="postgresql", netloc=f"{name}@{host}" if name else host).geturl()
    environment = dict(os.environ)
    if parts.password is not None:
        environment["PGPASSWORD"] = unquote(parts.password)
    result = subprocess.run(
        [command[0], f"--dbname={bare}", *command[1:]],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode == _NO_CONNECTION and command[0] == "psql":
        # "psql: error: WHY", and on further lines what might be the matter.
        said = result.stderr.strip().partition("\n")[0].removeprefix("psql: error: ")[:500]
        raise errors.Unavailable(
            f"cannot use the database: {said}; see that it runs and that server.database is right"
        )
    if result.returncode != 0:
        said = " ".join(result.stderr.split())[:500]
        raise errors.Unavailable(f"{command[0]} failed: {said}")
    return result.stdout


# -- small things


@contextmanager
def _alone(folders: Folders) -> Iterator[None]:
    """Hold the locks of server and runner: none of them starts meanwhile."""
    held = []
    try:
        for lock in (folders.server_lock, str(Path(folders.runner) / "keeper.lock")):
            if not Path(lock).parent.is_dir():
                continue
            fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            held.append(fd)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise errors.Conflict(
                    "the server runs, or its runner does; stop them: updraft stop, or under "
                    "systemd: systemctl stop updraft-server"
                ) from error
        yield
    finally:
        for fd in held:
            os.close(fd)


@contextmanager
def _temporary(parent: Path) -> Iterator[Path]:
    try:
        with tempfile.TemporaryDirectory(prefix=".updraft-backup-", dir=parent) as folder:
            yield Path(folder)
    except OSError as error:
        raise errors.Unavailable(
            f"cannot write {error.filename or parent}: {error.strerror}; "
            "choose another folder, or free some space"
        ) from error


def _private(path: Path) -> BinaryIO:
    """Make a file that nobody else may read, whatever the umask is."""
    return os.fdopen(
        os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb"
    )


def _digest(path: Path) -> str:
    found = sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            found.update(block)
    return found.hexdigest()


def _move(source: Path, target: Path) -> None:
    """Put a file in another's place at once, also where that is on another disk."""
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    with source.open("rb") as file, _private(beside) as out:
        shutil.copyfileobj(file, out, _BLOCK)
        out.flush()
        os.fsync(out.fileno())
    beside.replace(target)
    _flush_folder(target.parent)


def _flush_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
