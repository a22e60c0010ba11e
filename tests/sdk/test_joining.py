"""Joining: a token goes to no server in the clear, and to nothing that is started."""

import os

import pytest

from updraft import errors, settings
from updraft.sdk.joining import join


@pytest.mark.parametrize("url", ["http://updraft.example.org", "http://127.0.0.1:1", "updraft"])
def test_a_token_passes_no_network_in_the_clear(url: str) -> None:
    with pytest.raises(errors.BadRequest, match="write it as https://HOST"):
        join(url, "a-token", {})


def test_a_token_of_the_environment_is_taken_out_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPDRAFT_JOIN_TOKEN", "a-token")
    assert settings.take_join_token() == "a-token"
    assert "UPDRAFT_JOIN_TOKEN" not in os.environ
    assert settings.take_join_token() == ""
