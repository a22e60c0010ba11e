"""Joining: a token goes to no server in the clear, and to nothing that is started."""

import os
import socket
import ssl
import threading
from pathlib import Path

import pytest

from tests.server.https import self_signed
from updraft import errors, settings
from updraft.runner.agent.capacity import find_capacity
from updraft.sdk import joining
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


def test_a_server_that_is_silent_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joining, "_TIMEOUT_SECONDS", 0.01)
    key, certificate, fingerprint = self_signed(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        held = threading.Event()

        def serve() -> None:
            peer, _ = listening.accept()
            with context.wrap_socket(peer, server_side=True):
                held.wait(60)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(errors.Unavailable, match="cannot reach https://127"):
            join(
                f"https://127.0.0.1:{port}",
                "a-token",
                {"capacity": find_capacity()},
                fingerprint=fingerprint,
            )
        held.set()
        thread.join()
