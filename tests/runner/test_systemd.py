"""A joined runner as systemd's: the unit that is written, and what systemctl is asked."""

import os
from pathlib import Path

import pytest

from updraft import errors
from updraft.runner import systemd

PACKAGED = Path(__file__).parents[2] / "packaging" / "updraft-runner.service"


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with what a systemctl of the test's own was asked, line by line."""
    said, folder = tmp_path / "asked", tmp_path / "bin"
    folder.mkdir()
    program = folder / "systemctl"
    program.write_text(
        f'#!/bin/sh\necho "$@" >> {said}\n'
        f"[ ! -e {tmp_path}/fails ] || {{ echo no bus >&2; exit 1; }}\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return said


def test_a_unit_is_installed_enabled_and_started(tmp_path: Path, asked: Path) -> None:
    places = {"UPDRAFT_HOME": "/srv/$h", "UPDRAFT_CONFIG": "/etc/up draft.toml"}
    assert systemd.install("/var/lib/r/node 1", places, str(tmp_path)) == (
        "updraft-runner-node 1.service"
    )
    assert asked.read_text().splitlines() == [
        "daemon-reload",
        "enable --now updraft-runner-node 1.service",
    ]
    lines = (tmp_path / "updraft-runner-node 1.service").read_text().splitlines()
    assert "Environment=UPDRAFT_HOME=/srv/$h" in lines
    assert 'Environment="UPDRAFT_CONFIG=/etc/up draft.toml"' in lines
    (start,) = [line for line in lines if line.startswith("ExecStart=")]
    assert start.endswith('/updraft runner run --folder "/var/lib/r/node 1"')


def test_what_systemctl_says_is_told_in_one_line(tmp_path: Path, asked: Path) -> None:
    (tmp_path / "fails").touch()
    with pytest.raises(errors.BadConfiguration) as caught:
        systemd.install("/var/lib/r/node1", {}, str(tmp_path))
    assert caught.value.message == (
        "systemctl daemon-reload: no bus; the runner has joined: start it with updraft runner run"
    )


def test_the_unit_is_the_packaged_one_but_for_where_things_are() -> None:
    own = {"ExecStart", "Environment", "StateDirectory", "StateDirectoryMode", "Description"}

    def settings(text: str) -> list[str]:
        lines = [line for line in text.splitlines() if line and not line.startswith("#")]
        return [line for line in lines if line.partition("=")[0] not in own]

    assert settings(systemd.unit_of("/r/node1", {})) == settings(PACKAGED.read_text())


def test_units_are_for_root_where_systemd_runs(tmp_path: Path) -> None:
    assert systemd.starts_units(str(tmp_path)) is (os.geteuid() == 0)
    assert not systemd.starts_units(str(tmp_path / "none"))
