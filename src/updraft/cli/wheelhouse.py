"""Collects the wheels that runners are installed from: Updraft's own, and all that it needs.

Updraft's is made of what is installed here, so that it is this very release, wherever it came from;
the others are what pip downloads for each Python and processor.
"""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

import updraft
from updraft import errors

PYTHONS = ("3.11", "3.12", "3.13")
MACHINES = ("x86_64", "aarch64")

_NAME = "updraft-cloud"
_COMMANDS = ("urun", "ubatch", "updraft")
_GLIBC = ("manylinux_2_28", "manylinux_2_17", "manylinux2014", "manylinux_2_5", "manylinux1")
_PIP_SECONDS = 600.0
_DATE = (2020, 1, 1, 0, 0, 0)


def build(
    folder: str, pythons: Sequence[str], machines: Sequence[str]
) -> list[tuple[str, str, str]]:
    """Fill ``folder`` anew; return for what there is nothing, and why.

    What was there stays until all is there.  Raises ``errors.BadConfiguration`` when nothing was
    got at all, or the folder cannot be written.
    """
    new, old = Path(f"{folder}.new"), Path(f"{folder}.old")
    problems = []
    try:
        for each in (new, old):
            shutil.rmtree(each, ignore_errors=True)
        new.mkdir(parents=True)
        own_wheel(new)
        for python in pythons:
            for machine in machines:
                problem = _download(new, python, machine)
                if problem:
                    problems.append((python, machine, problem))
        if len(problems) == len(pythons) * len(machines):
            raise errors.BadConfiguration(f"pip got no wheels: {problems[0][2]}")
        if Path(folder).exists():
            Path(folder).rename(old)
        new.rename(folder)
    except OSError as error:
        raise errors.BadConfiguration(f"cannot write {folder}: {error}") from error
    finally:
        for each in (new, old):
            shutil.rmtree(each, ignore_errors=True)
    return problems


def own_wheel(folder: Path) -> Path:
    """Write the wheel of the Updraft that runs; return its file."""
    found = metadata.distribution(_NAME)
    info = f"updraft_cloud-{found.version}.dist-info"
    wheel = folder / f"updraft_cloud-{found.version}-py3-none-any.whl"
    record = []
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:

        def add(name: str, data: bytes, mode: int = 0o644) -> None:
            entry = zipfile.ZipInfo(name, _DATE)
            entry.external_attr = (0o100000 | mode) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            record.append(f"{name},sha256={digest},{len(data)}")

        for name, path in _package_files():
            add(name, path.read_bytes())
        for command in _COMMANDS:
            add(f"updraft_cloud-{found.version}.data/scripts/{command}", _script(command), 0o755)
        add(f"{info}/METADATA", (found.read_text("METADATA") or "").encode())
        about = "Wheel-Version: 1.0\nGenerator: updraft\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        add(f"{info}/WHEEL", about.encode())
        record.append(f"{info}/RECORD,,")
        archive.writestr(zipfile.ZipInfo(f"{info}/RECORD", _DATE), "\n".join(record) + "\n")
    return wheel


def _package_files() -> Iterator[tuple[str, Path]]:
    package = Path(updraft.__file__).parent
    for path in sorted(package.rglob("*")):
        if path.is_file() and path.suffix != ".pyc":
            yield f"updraft/{path.relative_to(package).as_posix()}", path


def _script(command: str) -> bytes:
    """Return a command's file as it was before it was installed: its first line is filled in."""
    path = Path(sys.executable).parent / command
    try:
        _, _, rest = path.read_bytes().partition(b"\n")
    except OSError as error:
        raise errors.BadConfiguration(
            f"{path} is not there as it was installed: {error}"
        ) from error
    return b"#!python\n" + rest


def _needed() -> list[str]:
    """Return what Updraft needs, without what only its extras do."""
    wanted = metadata.requires(_NAME) or []
    return [each for each in wanted if not re.search(r";.*\bextra\b", each)]


def _download(folder: Path, python: str, machine: str) -> str:
    """Download what one Python on one processor needs; return what went wrong, if it did."""
    platforms = [f"--platform={glibc}_{machine}" for glibc in _GLIBC]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-input", "--only-binary=:all:", "--implementation=cp"]
    command += [f"--python-version={python}", *platforms, f"--dest={folder}", "pip", *_needed()]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_PIP_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if not done.returncode:
        return ""
    lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    return lines[-1].removeprefix("ERROR: ") if lines else f"pip exited with {done.returncode}"
