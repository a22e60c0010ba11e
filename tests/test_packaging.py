"""What a user's installer gets: the wheel, built here without a network."""

import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import updraft

ROOT = Path(__file__).parents[1]
COMMANDS = ("urun", "ubatch", "updraft")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (path,) = folder.iterdir()
    return zipfile.ZipFile(path)


def test_wheel_is_named_for_the_distribution_and_its_version(wheel: zipfile.ZipFile) -> None:
    assert wheel.filename is not None
    assert Path(wheel.filename).name == f"updraft_cloud-{updraft.__version__}-py3-none-any.whl"


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_executable_scripts_whose_interpreter_the_installer_fills_in(
    wheel: zipfile.ZipFile, command: str
) -> None:
    name = f"updraft_cloud-{updraft.__version__}.data/scripts/{command}"
    mode = wheel.getinfo(name).external_attr >> 16

    assert wheel.read(name).startswith(b"#!python\n")
    assert mode & stat.S_IXUSR


def test_wheel_holds_every_file_of_the_package(wheel: zipfile.ZipFile) -> None:
    source = ROOT / "src"
    expected = {
        path.relative_to(source).as_posix()
        for path in (source / "updraft").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }

    assert expected <= set(wheel.namelist())


def test_wheel_holds_nothing_but_the_package(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    version = updraft.__version__

    assert tops == {
        "updraft",
        f"updraft_cloud-{version}.data",
        f"updraft_cloud-{version}.dist-info",
    }
