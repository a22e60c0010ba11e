"""The way to a server elsewhere: what a person is told while it is away, and after."""

import os
import threading
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
