"""Writing profiles: the servers that a user signed in to, a small file each; see ``targets``.

They hold tokens: files of mode 0600 in a folder of mode 0700, replaced as a whole.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from updraft import errors
from updraft.sdk.targets import LOCAL, Target, check_name, current_profile, read_profile


def save(folder: str, target: Target) -> None:
    """Write a profile and make it the one in use."""
    check_name(target.profile)
    if target.profile == LOCAL:
        raise errors.BadRequest("the profile 'local' is the server on this machine; take another")
    values = {
        "url": target.url,
        "token": target.token,
        "project": target.project or "",
        "user": target.user,
        "fingerprint": target.fingerprint or "",
    }
    for key, value in values.items():
        if not value.isprintable():
            raise errors.BadRequest(f"{key}: {value!r} cannot be stored in a profile")
    lines = "".join(f"{key}={value}\n" for key, value in values.items() if value)
    _write(_profiles(folder) / target.profile, lines)
    use(folder, target.profile)


def use(folder: str, name: str) -> None:
    """Make a profile the one in use.  Raises ``errors.BadConfiguration`` when there is none."""
    if name != LOCAL:
        read_profile(folder, name)
    _write(Path(folder) / "profile", name + "\n")


def names(folder: str) -> list[str]:
    """Return the names of all profiles."""
    try:
        found = [path.name for path in (Path(folder) / "profiles").iterdir()]
    except FileNotFoundError:
        found = []
    return [LOCAL, *sorted(name for name in found if not name.startswith("."))]


def remove(folder: str, name: str) -> None:
    """Delete a profile; if it was in use, the server on this machine is from now on."""
    if name == LOCAL:
        raise errors.BadRequest("the profile 'local' is the server on this machine, and stays")
    read_profile(folder, name)
    if current_profile(folder) == name:
        use(folder, LOCAL)
    (_profiles(folder) / name).unlink()


def _profiles(folder: str) -> Path:
    path = Path(folder) / "profiles"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.chmod(0o700)
    except OSError as error:
        raise errors.BadConfiguration(f"cannot use {path}: {error.strerror}") from error
    return path


def _write(path: Path, text: str) -> None:
    """Replace a file in one step: who reads it meanwhile sees the old one, or the new."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise errors.BadConfiguration(f"cannot write {path}: {error.strerror}") from error
