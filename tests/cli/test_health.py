"""A running server's health, as whoever watches it asks: over the socket, with plain HTTP."""

import httpx

from tests.waiting import until
from updraft.testing.instance import Instance


def test_a_running_server_is_alive_and_ready_and_its_log_knows_the_request(
    updraft_home: Instance,
) -> None:
    transport = httpx.HTTPTransport(uds=str(updraft_home.state / "server.sock"))
    with httpx.Client(transport=transport, base_url="http://updraft") as client:
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
