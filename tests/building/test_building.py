"""``make CC='urun gcc'`` builds what ``make`` builds, and fails as it fails."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.building import c_project
from updraft.testing.instance import Instance

pytestmark = pytest.mark.skipif(
    shutil.which("make") is None or shutil.which("gcc") is None, reason="make or gcc is missing"
)

JOBS = 8
"""More than a machine for tests has CPUs: some of them wait in the queue."""


def make(own: Instance, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**own.environment, "PATH": f"{own.commands}:{os.environ['PATH']}"}
    # Of a `make test` around this one.
    for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):
        environment.pop(name, None)
    return subprocess.run(
        ["make", f"-j{JOBS}", *arguments],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def built(folder: Path) -> dict[str, bytes]:
    """Everything that the build made: objects, the library, the program."""
    made = [*folder.glob("*/*.o"), folder / "libmodules.a", folder / "program"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in made}


def spoken(said: str) -> list[str]:
    """What the compiler said, without what ``urun`` says of jobs that wait."""
    return sorted(line for line in said.splitlines() if not line.startswith("urun: "))


@pytest.mark.slow
def test_a_build_through_urun_makes_the_same_files(updraft_home: Instance, tmp_path: Path) -> None:
    c_project.write(tmp_path / "plain")
    c_project.write(tmp_path / "through")
    plain = make(updraft_home, tmp_path / "plain")
    through = make(updraft_home, tmp_path / "through", "CC=urun gcc")
    assert (plain.returncode, through.returncode) == (0, 0), through.stderr
    assert len(built(tmp_path / "plain")) == c_project.FILES + 2
    assert built(tmp_path / "through") == built(tmp_path / "plain")
    listed = updraft_home.run("updraft", "job", "list", "-a", "--limit", "1000", "--json")
    compiled = [job for job in json.loads(listed.stdout) if job["command"][0] == "gcc"]
    assert len(compiled) == c_project.FILES + 1
    run = subprocess.run([tmp_path / "through" / "program"], capture_output=True, check=True)
    assert run.stdout.decode() == c_project.output()
    assert c_project.WARNING in through.stderr.replace("‘", "'").replace("’", "'")
    assert spoken(through.stderr) == spoken(plain.stderr)


def test_a_compile_error_ends_the_build_as_it_does_without_urun(
    updraft_home: Instance, tmp_path: Path
) -> None:
    number = 100
    c_project.write(tmp_path / "plain")
    words = c_project.break_module(tmp_path / "plain", number)
    shutil.copytree(tmp_path / "plain", tmp_path / "through")
    target = f"lib/module_{number}.o"
    plain = make(updraft_home, tmp_path / "plain", target)
    through = make(updraft_home, tmp_path / "through", target, "CC=urun gcc")
    assert through.returncode == plain.returncode == 2
    assert words in through.stderr
    assert spoken(through.stderr) == spoken(plain.stderr)

    # The whole build too, with everything else that goes on beside it.
    whole = make(updraft_home, tmp_path / "through", "CC=urun gcc")
    assert whole.returncode == 2
    assert words in whole.stderr
    assert not (tmp_path / "through" / "program").exists()
