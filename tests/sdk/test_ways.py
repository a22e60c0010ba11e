"""The way to a server elsewhere: what a person is told while it is away, and after."""

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from updraft import errors
from updraft.sdk import ways
from updraft.sdk.targets import Target


@pytest.mark.parametrize(("profile", "source"), [("", "UPDRAFT_URL"), ("team", "profile team")])
def test_a_server_that_is_away_is_told_once_at_a_terminal_and_its_address_named_with_its_source(
    monkeypatch: pytest.MonkeyPatch, profile: str, source: str
) -> None:
    told: list[str] = []
    was_told = threading.Event()

    def say(line: str) -> None:
        told.append(line)
        was_told.set()

    def dial(_way: ways.RemoteWay) -> Any:
        assert was_told.wait(30)
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(ways, "_SAID_SECONDS", 0.0)
    monkeypatch.setattr(ways, "_FIRST_SECONDS", 0.0)
    monkeypatch.setattr(ways.RemoteWay, "_dial", dial)
    monkeypatch.setattr(os, "isatty", lambda fd: fd == 2)
    url = "https://lab.test"
    way = ways.RemoteWay(Target(url, "secret", profile=profile), say)
    for _ in range(2):
        with pytest.raises(errors.Unavailable) as raised:
            way.connect()
        assert raised.value.message == (
            f"cannot reach {url} (Connection refused); is it up, and the right address? it is from "
            f"{source}"
        )
    assert told == [f"cannot reach {url} yet; trying for a while"]


def test_nothing_is_told_where_no_person_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "isatty", lambda _fd: False)
    way = ways.RemoteWay(Target("https://ci.test", "secret"), pytest.fail)
    assert way._say is None


def test_a_flags_project_goes_over_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPDRAFT_URL", "https://ci.test")
    monkeypatch.setenv("UPDRAFT_TOKEN", "secret")
    monkeypatch.setenv("UPDRAFT_PROJECT", "one")
    assert ways.find_way().credentials["project"] == "one"
    assert ways.find_way(project="two").credentials["project"] == "two"


def test_this_machines_own_server_has_no_project_to_choose(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("UPDRAFT_HOME", str(tmp_path))
    monkeypatch.delenv("UPDRAFT_URL", raising=False)
    monkeypatch.delenv("UPDRAFT_TOKEN", raising=False)
    monkeypatch.delenv("UPDRAFT_PROFILE", raising=False)
    with pytest.raises(errors.BadRequest, match="--project is for a server that you signed in to"):
        ways.find_way(project="two")
