"""Whose processes a shared runner's tasks are: owners mapped to user ids of this machine.

A root runner runs each task as its owner's own user.  Under the policy ``system`` that is the
account of the same name on this machine, never root nor one of the system's own.  Owners without
such an account, and all under ``pool``, get a user id of a range that nothing else uses: the same
one for as long as anything of theirs lies here.

The agent decides; the keeper carries out (``keeper.isolation``).
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import fcntl
import grp
import json
import os
import pwd
import re
import secrets
import stat
import subprocess
import sys
import urllib.parse
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import Any

from updraft import errors
from updraft.runner.keeper import devices, temporary

FIRST_UID, LAST_UID = 300_000, 365_535
"""The range of the pool unless configured."""

_FIRST_ACCOUNT = 1000
"""Below are root and the system's own accounts (UID_MIN of login.defs)."""

_NOBODY = 65534
_JOB = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}\Z")
_MOST_NAME_BYTES = 200
_TRIAL_SECONDS = 20


class Policy(enum.StrEnum):
    """Where an owner's user id comes from."""

    SYSTEM = "system"
    POOL = "pool"


@dataclasses.dataclass(frozen=True)
class Owner:
    """An owner's user on this machine.  ``home`` is empty where there is none."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    home: str = ""
    shell: str = "/bin/sh"


@dataclasses.dataclass
class _Pool:
    """Who has which user id, and which one was given last."""

    uids: dict[str, int]
    last: int


class Owners:
    """The owners of one runner.

    ``folder`` is the runner's.  ``owners.json`` in it says who has which user id of the pool, and
    ``work/OWNER/JOB`` are the workspaces.  Raises ``errors.BadConfiguration``.
    """

    def __init__(
        self,
        folder: Path,
        policy: Policy = Policy.POOL,
        first_uid: int = FIRST_UID,
        last_uid: int = LAST_UID,
    ) -> None:
        if not _FIRST_ACCOUNT <= first_uid <= last_uid < 1 << 31:
            raise errors.BadConfiguration(
                f"the user ids {first_uid} to {last_uid} are no range of {_FIRST_ACCOUNT} or above"
            )
        if (closed := _closed_above(folder)) is not None:
            raise errors.BadConfiguration(
                f"workspaces in {folder} cannot be entered, since {closed} is closed to other "
                "users; put the runner's folder elsewhere: UPDRAFT_HOME=/var/lib/updraft-runner"
            )
        self._folder = folder
        self._policy = policy
        self._range = range(first_uid, last_uid + 1)

    # -- who

    def owner(self, name: str) -> Owner:
        """Return an owner's user, which is the same each time.

        Raises ``errors.Unavailable`` when every user id of the pool is taken.
        """
        if self._policy is Policy.SYSTEM and (account := _account(name)) is not None:
            return account
        with self._stored() as pool:
            if name not in pool.uids:
                pool.last = pool.uids[name] = self._free_uid(pool)
            uid = pool.uids[name]
        return Owner(name, uid, uid)

    def _free_uid(self, pool: _Pool) -> int:
        taken = set(pool.uids.values()) | _accounts() | self._uids_with_files()
        delegated = [*_delegated(Path("/etc/subuid")), *_delegated(Path("/etc/subgid"))]
        # Upwards of the last one given: a freed one rests as long as it can, since its files may
        # lie where nobody looks.
        ahead = [uid for uid in self._range if uid > pool.last]
        behind = [uid for uid in self._range if uid <= pool.last]
        for uid in (*ahead, *behind):
            if uid not in taken and not any(uid in each for each in delegated):
                return uid
        raise errors.Unavailable(
            f"no user id between {self._range[0]} and {self._range[-1]} is free on this runner; "
            "configure a larger range"
        )

    def _uids_with_files(self) -> set[int]:
        """Whose workspaces are still here, whoever the owner was."""
        return {int(job.lstat().st_uid) for job in self._folder.glob("work/*/*")}

    def forget(self, name: str) -> bool:
        """Free an owner's user id of the pool.  False while files of theirs remain here."""
        with self._stored() as pool:
            if name in pool.uids and pool.uids[name] in self._uids_with_files():
                return False
            pool.uids.pop(name, None)
        return True

    @contextlib.contextmanager
    def _stored(self) -> Iterator[_Pool]:
        """The pool as it is stored; what is changed is on the disk before it is used."""
        path = self._folder / "owners.json"
        lock = os.open(self._folder / "owners.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)  # an old agent and its successor may meet here
            try:
                before = json.loads(path.read_text())
            except FileNotFoundError:
                before = {"uids": {}, "last": 0}
            pool = _Pool(dict(before["uids"]), before["last"])
            yield pool
            if (after := dataclasses.asdict(pool)) != before:
                _write(path, json.dumps(after, indent=1))
        finally:
            os.close(lock)

    # -- where

    def workspace(self, owner: Owner, job: str) -> Path:
        """Make a job's own folder, if it is not there yet, and return it.

        Raises ``errors.Conflict`` if what is there is somebody else's.
        """
        path = self._path(owner.name, job)
        # The folders above are root's: nobody can put a link in the way.
        for folder in (self._folder / "work", path.parent):
            with contextlib.suppress(FileExistsError):
                folder.mkdir(mode=0o711)
                folder.chmod(0o711)
        try:
            path.mkdir(mode=0o700)
        except FileExistsError:
            found = path.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (owner.uid, os.geteuid()):
                raise errors.Conflict(
                    f"{path} is not {owner.name}'s (user id {found.st_uid}, not {owner.uid}); "
                    "move it away"
                ) from None
        os.chown(path, owner.uid, owner.gid, follow_symlinks=False)
        path.chmod(0o700)
        return path

    def workspaces_of(self, name: str, jobs: Iterable[str]) -> list[bytes]:
        """Return the workspaces here of other jobs of an owner's: those that a job came from."""
        owner = self.owner(name)
        found = []
        for job in jobs:
            path = self._path(owner.name, job)
            with contextlib.suppress(FileNotFoundError):
                if stat.S_ISDIR((there := path.lstat()).st_mode) and there.st_uid == owner.uid:
                    found.append(os.fsencode(path))
        return found

    def put_away(self, job: str) -> list[Path]:
        """Take a job's workspace out of the way, whoever's it is, and return what to ``remove``.

        Its tasks have ended; the next one of the same job gets a fresh workspace at once.
        """
        if not _JOB.match(job):
            return []
        return [
            path.rename(path.with_name(f".{job}-{secrets.token_hex(8)}"))
            for path in self._folder.glob(f"work/*/{job}")
        ]

    def left_over(self, jobs: Container[str]) -> list[Path]:
        """Return what is there beside the workspaces of these jobs: a killed agent left it."""
        return [path for path in self._folder.glob("work/*/*") if path.name not in jobs]

    def remove(self, paths: Iterable[Path]) -> None:
        """Remove what was put away or left over.  May take a while: not for a loop."""
        for path in paths:
            temporary.remove_below(str(path))
            with contextlib.suppress(FileNotFoundError):
                path.rmdir()
            with contextlib.suppress(OSError):  # the owner has other jobs here
                path.parent.rmdir()

    def _path(self, owner_name: str, job: str) -> Path:
        # A name may be an address, or anything that a sign-in provider says.
        name = urllib.parse.quote(owner_name, safe="@+")
        name = name.replace(".", "%2E") if name.startswith(".") else name
        if not name or len(name) > _MOST_NAME_BYTES:
            raise errors.BadRequest(f"{owner_name!r} cannot be an owner here: it names no folder")
        if not _JOB.match(job):
            raise errors.BadRequest(f"{job!r} cannot be a job here: it names no folder")
        return self._folder / "work" / name / job

    # -- what the keeper is told

    def isolation(
        self, name: str, job: str, devices: Iterable[str] = (), hidden: Iterable[str] = ()
    ) -> dict[str, Any]:
        """Return a spec's ``isolation`` for a task of this owner's job; makes its workspace.

        ``devices``: the nodes of granted GPUs (``gpus.device_nodes``).  ``hidden``: what else is to
        be covered; the runner's folder is in any case.
        """
        owner = self.owner(name)
        return {
            "uid": owner.uid,
            "gid": owner.gid,
            "groups": list(owner.groups),
            "user": owner.name.encode(),
            "home": os.fsencode(owner.home),
            "shell": os.fsencode(owner.shell),
            "workspace": os.fsencode(self.workspace(owner, job)),
            "devices": [os.fsencode(path) for path in devices],
            "hidden": [os.fsencode(path) for path in hidden],
        }


def check_range(first: int, last: int) -> None:
    """Raise ``errors.BadConfiguration`` where an account's user id lies in the range of the pool.

    For whoever starts a runner: an account that is made later is only left out.
    """
    for user in pwd.getpwall():
        if first <= user.pw_uid <= last:
            raise errors.BadConfiguration(
                f"runner.uid_range: {first}-{last} has the user id {user.pw_uid}, which is "
                f"{user.pw_name}'s; choose a range without accounts"
            )


def _closed_above(folder: Path) -> Path | None:
    """Return a folder on the way that only some users may pass.

    The runner's own is none: a task has another one in its place, as it has a /tmp.
    """
    for above in folder.absolute().parents:
        if above in (Path("/tmp"), Path("/var/tmp")):  # noqa: S108 - not to put anything there
            return None
    ways = [above for above in folder.resolve().parents if above.exists()]
    return next((above for above in ways if not above.stat().st_mode & 0o001), None)


def _account(name: str) -> Owner | None:
    """Return a person's account on this machine, None for root's, the system's and no account."""
    try:
        found = pwd.getpwnam(name)
    except (KeyError, ValueError):
        return None
    if found.pw_uid < _FIRST_ACCOUNT or found.pw_uid == _NOBODY or found.pw_gid == 0:
        return None
    # The system's groups are ways to devices and daemons (disk, docker): a job has none of them.
    groups = [
        group
        for group in os.getgrouplist(name, found.pw_gid)
        if group >= _FIRST_ACCOUNT and group not in (_NOBODY, found.pw_gid)
    ]
    home = found.pw_dir if Path(found.pw_dir).is_dir() else ""
    shell = found.pw_shell or "/bin/sh"
    return Owner(name, found.pw_uid, found.pw_gid, tuple(sorted(groups)), home, shell)


def _accounts() -> set[int]:
    users = {int(user.pw_uid) for user in pwd.getpwall()}
    return users | {int(group.gr_gid) for group in grp.getgrall()}


def _delegated(path: Path) -> list[range]:
    """Return the ids that users of this machine may take on in user namespaces (subuid(5))."""
    found = []
    with contextlib.suppress(OSError):
        for line in path.read_text().splitlines():
            fields = line.split(":")
            if len(fields) == 3 and fields[1].isdigit() and fields[2].isdigit():
                found.append(range(int(fields[1]), int(fields[1]) + int(fields[2])))
    return found


def _write(path: Path, text: str) -> None:
    """Replace a file: whole, mode 0600, and on the disk."""
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def can_isolate() -> str | None:
    """Return why tasks of several owners cannot be kept apart here, None if they can.

    Decided by trying, in a process of its own: takes a moment.
    """
    program = "from updraft.runner.keeper.isolation import probe; print(probe())"
    try:
        tried = subprocess.run(
            [sys.executable, "-I", "-c", program],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TRIAL_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"whether tasks can be isolated here is not known: {error}"
    if tried.returncode != 0:
        last = tried.stderr.strip().rpartition("\n")[2]
        return f"whether tasks can be isolated here is not known: {last}"
    return tried.stdout.strip() or None


def describe() -> list[tuple[str, bool, str]]:
    """Return ``(what, whether it holds, a sentence)`` about isolation here, for ``doctor``.

    As ``cgroups.describe`` does.  Tries it out: takes a moment.
    """
    why = can_isolate()
    apart = "by user ids, PID and mount namespaces" if why is None else f"not possible: {why}"
    found = [("keeping tasks of several owners apart", why is None, apart)]
    if why is None:
        limited = devices.limited_by()
        sees = "a task sees only the devices that it was granted, and can make none"
        by = f"{sees}; {limited} refuses the rest" if limited else sees
        found.append(("limiting a task to its GPUs", True, by))
    return found
