"""What servers and runners are deployed with: valid units, recipes that say what they need."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from updraft.testing.instance import Instance

ROOT = Path(__file__).parents[1]
UNITS = sorted((ROOT / "packaging").glob("*.service"))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_units_are_valid(unit: Path, tmp_path: Path) -> None:
    # It also looks whether the programs are there: those of this environment.
    copy = tmp_path / unit.name
    text = unit.read_text()
    assert "/opt/updraft/bin/" in text
    copy.write_text(text.replace("/opt/updraft/bin/", f"{Path(sys.executable).parent}/"))
    result = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(copy)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    ours = [line for line in result.stderr.splitlines() if unit.name in line]
    assert (ours, result.returncode) == ([], 0), result.stderr


def test_the_recipe_of_images_says_what_it_needs_in_one_line(tmp_path: Path) -> None:
    for name in ("sh", "dirname"):
        found = shutil.which(name)
        assert found is not None
        (tmp_path / name).symlink_to(found)
    result = subprocess.run(
        [ROOT / "tools" / "build-images"], env={"PATH": str(tmp_path)},
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    assert result.stderr == (
        "make images needs docker, podman or buildah; install one of them, or set BUILDER.\n"
    )
    assert result.returncode == 1


def test_the_health_check_of_the_image_asks_the_server(updraft_home: Instance) -> None:
    def ask(home: str) -> int:
        environment = {**os.environ, "UPDRAFT_HOME": home}
        command = [sys.executable, str(ROOT / "packaging" / "healthcheck")]
        return subprocess.run(
            command, env=environment, check=False, timeout=30, stderr=subprocess.DEVNULL
        ).returncode

    assert ask(str(updraft_home.home)) == 0
    assert ask("/nonexistent") == 1
