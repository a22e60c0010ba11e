"""A running server's health, as whoever watches it asks: over the socket, with plain HTTP."""

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.cli.calling import call
from tests.waiting import until
from updraft.testing.instance import Instance, instance


@contextmanager
def plain_http(own: Instance) -> Iterator[httpx.Client]:
    """Return a client that speaks to an instance's socket, however long its path is."""
    folder = os.open(own.state, os.O_RDONLY | os.O_DIRECTORY)
    try:
        transport = httpx.HTTPTransport(uds=f"/proc/self/fd/{folder}/server.sock")
        with httpx.Client(transport=transport, base_url="http://updraft") as client:
            yield client
    finally:
        os.close(folder)


def test_a_running_server_is_alive_and_ready_and_its_log_knows_the_request(
    updraft_home: Instance,
) -> None:
    with plain_http(updraft_home) as client:
        assert client.get("/healthz").text == "alive\n"
        assert client.get("/readyz").text == "ready\n"
        answer = client.get("/api/v1/jobs", headers={"X-Request-ID": "asked-by-the-test"})
    assert answer.headers["x-request-id"] == "asked-by-the-test"

    def look() -> str | None:
        log = (updraft_home.state / "server.log").read_text()
        return next((line for line in log.splitlines() if "asked-by-the-test" in line), None)

    line = until(look, "the line in the log")
    assert line is not None
    assert " server INFO GET /api/v1/jobs 200 " in line


def test_a_server_with_a_metrics_token_shows_its_measures_and_logs_json(
    tmp_path: Path,
) -> None:
    token = secrets.token_hex(16)
    (tmp_path / "token").write_text(f"{token}\n")
    with instance(tmp_path / "home") as own:
        config = own.home / "config"
        config.mkdir()
        (config / "updraft.toml").write_text(
            '[server]\nlog_format = "json"\n'
            f'[telemetry]\nmetrics_token_file = "{tmp_path / "token"}"\n'
        )
        assert own.run("urun", "-q", "sh", "-c", "cat; echo x >&2", data=b"12345").returncode == 0
        with plain_http(own) as client:
            headers = {"Authorization": f"Bearer {token}", "X-Request-ID": "the-test"}
            body = client.get("/metrics", headers=headers)
            client.get("/api/v1/jobs", headers=headers)
        assert body.status_code == 200
        assert 'updraft_runners{pool="local",state="connected"} 1.0' in body.text
        assert 'updraft_loop_passes_total{loop="retention"} 1.0' in body.text
        assert 'updraft_relay_bytes_total{direction="to_runner"} 5.0' in body.text
        assert 'updraft_relay_bytes_total{direction="to_client"} 7.0' in body.text

        def look() -> dict[str, object] | None:
            log = (own.state / "server.log").read_text()
            assert token not in log
            lines = [line for line in log.splitlines() if "the-test" in line]
            return json.loads(lines[0]) if lines else None

        line = until(look, "the line in the log")
        assert line is not None
        assert (line["request"], line["route"]) == ("the-test", "/api/v1/jobs")


def test_a_secret_that_cannot_be_read_stops_the_start_in_one_line(tmp_path: Path) -> None:
    with instance(tmp_path / "home") as own:
        config = own.home / "config"
        config.mkdir()
        (config / "updraft.toml").write_text('[telemetry]\nmetrics_token_file = "gone"\n')
        said = call(own, "urun", "true")
        assert said.code == 125
        assert said.error == (
            "urun: the server could not start: "
            f"cannot read the secret in {config / 'gone'}: No such file or directory"
        )
