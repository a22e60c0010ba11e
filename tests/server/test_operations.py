"""Health, measures, request ids and the log."""

import asyncio
import io
import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.server.api import ME, Api, with_api
from tests.server.tcp import Tcp, with_tcp
from updraft import settings
from updraft.configuration import Configuration
from updraft.configuration.schema import Backup
from updraft.model.access import Principal
from updraft.server.loops import backups
from updraft.server.loops.backups import keep_backups
from updraft.server.loops.lag import watch_lag
from updraft.server.loops.lasting import lasting
from updraft.server.observe import logs
from updraft.server.observe.beats import Beats
from updraft.server.observe.measures import Measures
from updraft.server.services.operations import Operations

ADMIN = Principal("uid:1", server_admin=True)
TOKEN = "a-token-made-for-this-test"


def operations_of(made: Api) -> Operations:
    found = made.app.state.operations
    assert isinstance(found, Operations)
    return found


async def ask(made: Api, path: str, who: Principal | None = None, **headers: str) -> httpx.Response:
    """Ask outside of the API's prefix, also without a principal."""

    async def app(scope, receive, send):  # type: ignore[no-untyped-def]
        known = {} if who is None else {"principal": who}
        await made.app({**scope, **known}, receive, send)

    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        return await client.get(path, headers=headers)


def samples(body: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Return all samples, read by Prometheus' own parser."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(body)
        for sample in family.samples
    }


# -- health


def test_a_server_that_works_is_alive_and_ready_for_everybody(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        for path, said in (("/healthz", "alive\n"), ("/readyz", "ready\n")):
            answer = await ask(made, path)
            assert (answer.status_code, answer.text) == (200, said)

    with_api(tmp_path, check)


def test_a_server_that_does_not_work_is_alive_and_says_why_it_is_not_ready(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        operations = operations_of(made)
        operations.beats.expect("sweeping", within_seconds=-1)
        await made.database.close()
        answer = await ask(made, "/readyz")
        assert answer.status_code == 503
        assert answer.json()["error"] == {
            "code": "unavailable",
            "message": "not ready: the loop 'sweeping' is late; the database does not answer",
        }
        assert (await ask(made, "/healthz")).status_code == 200

    with_api(tmp_path, check)


def test_a_loop_s_bad_pass_is_logged_counted_and_survived(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = 100.0
    measures = Measures()
    beats = Beats(measures, clock=lambda: now)
    beats.expect("sweeping", 10)
    now = 109.0
    assert beats.late() == []
    now = 111.0
    assert beats.late() == ["sweeping"]

    def bad_pass() -> None:
        raise ValueError("bad")

    with beats.one_pass("sweeping"):
        now = 112.0
        bad_pass()
    assert "a pass of the loop 'sweeping' failed" in caplog.text
    assert beats.late() == []
    assert (measures.passes["sweeping"], measures.failed_passes["sweeping"]) == (1, 1)
    beats.forget("sweeping")
    now = 1000.0
    assert beats.late() == []


def test_a_loop_that_begins_again_without_a_pass_is_late_and_one_in_a_long_pass_is_not() -> None:
    now = 100.0
    beats = Beats(Measures(), clock=lambda: now)
    beats.expect("failing", 10)
    beats.expect("busy", 10)
    now = 111.0
    beats.expect("failing", 10)
    beats.goes_on("busy")
    assert beats.late() == ["failing"]


def test_a_backup_that_hangs_keeps_the_server_from_being_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def hang(*_: object) -> None:
        begun.set()
        go_on.wait(60)

    async def check() -> None:
        now = 0.0
        beats = Beats(Measures(), clock=lambda: now)
        wanted = Configuration(backup=Backup(folder=str(tmp_path)))
        task = asyncio.create_task(
            keep_backups(settings.folders({"UPDRAFT_HOME": str(tmp_path)}), wanted, beats)
        )
        assert await asyncio.to_thread(begun.wait, 60)
        assert beats.late() == []
        now = 86400.0
        assert beats.late() == ["backups"]
        go_on.set()
        task.cancel()
        await asyncio.wait([task])

    monkeypatch.setattr(backups, "back_up_if_due", hang)
    asyncio.run(check())


def test_a_loop_that_ends_by_an_exception_is_logged_and_begins_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    runs = 0

    async def loop() -> None:
        nonlocal runs
        runs += 1
        if runs < 3:
            raise OSError(f"bad {runs}")

    asyncio.run(lasting("sweeping", loop, again_seconds=0.0))
    assert runs == 3
    said = [record.getMessage() for record in caplog.records]
    assert said == ["the loop 'sweeping' ended; it begins again in 0 s"] * 2
    assert "OSError: bad 2" in caplog.text


def test_the_loop_s_lag_is_measured() -> None:
    async def check() -> None:
        passed = asyncio.Event()

        class Telling(Measures):
            def lagged(self, seconds: float) -> None:
                super().lagged(seconds)
                passed.set()

        measures = Telling()
        task = asyncio.create_task(watch_lag(measures, Beats(measures)))
        async with asyncio.timeout(20):
            await passed.wait()
        task.cancel()
        await asyncio.wait([task])
        assert sum(measures.lag.counts) == measures.passes["lag"]

    asyncio.run(check())


# -- measures


def test_all_measures_are_there_with_labels_that_are_bounded(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        operations = operations_of(made)
        operations.connections = lambda: {"client": 3}
        measures = operations.measures
        measures.launched("local", 0.002, 0.02)
        measures.launched("local", 2.0, 70.0)
        measures.relay("to_client", 1000)
        measures.passed("retention", 0.5, failed=False)
        measures.lagged(0.003)
        measures.notification("chat", "sent")
        job = await made.submit("key-number-1")
        assert (await made.ask("GET", f"/jobs/{job}")).status_code == 200
        assert (await made.ask("GET", "/jobs/nothere123")).status_code == 404
        assert (await made.ask("GET", "/x/secret-in-a-path")).status_code == 404
        answer = await ask(made, "/metrics", ADMIN)
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert "secret-in-a-path" not in answer.text
        assert job not in answer.text
        found = samples(answer.text)
        local = ("pool", "local")
        assert found["updraft_queue_jobs", (local,)] == 1
        assert found["updraft_running_jobs", (local,)] == 0
        assert found["updraft_runners", (local, ("state", "away"))] == 1
        assert found["updraft_connections", (("kind", "client"),)] == 3
        assert found["updraft_launch_seconds_count", (local,)] == 2
        assert found["updraft_launch_seconds_bucket", (("le", "0.025"), local)] == 1
        assert found["updraft_launch_seconds_bucket", (("le", "+Inf"), local)] == 2
        assert found["updraft_queue_wait_seconds_sum", (local,)] == pytest.approx(2.002)
        assert found["updraft_relay_bytes_total", (("direction", "to_client"),)] == 1000
        assert found["updraft_event_loop_lag_seconds_count", ()] == 1
        assert found["updraft_loop_passes_total", (("loop", "retention"),)] == 1
        assert found["updraft_loop_errors_total", (("loop", "retention"),)] == 0
        assert found["updraft_errors_total", (("code", "not_found"),)] == 2
        assert found["updraft_database_commits_total", ()] >= 1
        assert found["updraft_database_writes_total", ()] >= 1
        assert found[
            "updraft_http_request_seconds_count",
            (("method", "GET"), ("route", "/api/v1/jobs/{job}"), ("status", "404")),
        ] == 1  # fmt: skip
        assert found[
            "updraft_notifications_total", (("receiver", "chat"), ("result", "sent"))
        ] == 1  # fmt: skip

    with_api(tmp_path, check)


def test_measures_are_for_admins_and_for_their_own_token(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        assert (await ask(made, "/metrics", ME, **bearer)).status_code == 403
        operations_of(made).open_metrics(TOKEN)
        assert (await ask(made, "/metrics", ME)).status_code == 403
        assert (await ask(made, "/metrics", ME, Authorization="Bearer x")).status_code == 403
        assert (await ask(made, "/metrics", None, **bearer)).status_code == 200
        # It opens nothing else.
        assert (await ask(made, "/api/v1/jobs", None, **bearer)).status_code == 401
        job = await made.submit("key-number-1")
        assert (await ask(made, f"/api/v1/jobs/{job}", None, **bearer)).status_code == 401

    with_api(tmp_path, check)


# -- ids and the log


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What is logged, as JSON."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    stream = io.StringIO()
    logs.configure("json", "debug", stream)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(log: io.StringIO, logger: str = "updraft.requests") -> list[dict[str, object]]:
    found = [json.loads(line) for line in log.getvalue().splitlines()]
    return [line for line in found if line["logger"] == logger]


def test_the_token_for_the_measures_works_over_the_network(tmp_path: Path) -> None:
    async def check(tcp: Tcp) -> None:
        tcp.made.parts.operations.open_metrics(TOKEN)
        async with tcp.http(TOKEN) as client:
            answer = await client.get("/metrics")
            assert answer.status_code == 200
            assert "updraft_" in answer.text
            for path in ("/api/v1/me", "/api/v1/jobs"):
                assert (await client.get(path)).status_code == 401
        async with tcp.http(TOKEN + "x") as client:
            assert (await client.get("/metrics")).status_code == 401

    with_tcp(tmp_path, check)


def test_a_request_is_logged_with_its_id_route_and_job_and_without_secrets(
    tmp_path: Path, log: io.StringIO
) -> None:
    async def check(made: Api) -> None:
        job = await made.submit("key-number-1")
        answer = await ask(
            made,
            f"/api/v1/jobs/{job}?token=geheim",
            ME,
            **{"X-Request-ID": "from-the-client.1", "Authorization": "Bearer geheim"},
        )
        assert answer.headers["x-request-id"] == "from-the-client.1"
        line = lines(log)[-1]
        assert line["request"] == "from-the-client.1"
        assert (line["method"], line["route"]) == ("GET", "/api/v1/jobs/{job}")
        assert (line["status"], line["level"], line["job"]) == (200, "info", job)
        assert isinstance(line["ms"], float)
        assert "geheim" not in log.getvalue()

    with_api(tmp_path, check)


@pytest.mark.parametrize("identity", ["x" * 65, "a b", "a\x7fb", 'a"b', "", "é"])
def test_an_id_that_may_not_go_into_a_log_is_replaced(tmp_path: Path, identity: str) -> None:
    async def check(made: Api) -> None:
        answer = await made.ask("GET", "/jobs", headers={"X-Request-ID": identity.encode()})
        given = answer.headers["x-request-id"]
        assert given != identity
        assert len(given) == 16

    with_api(tmp_path, check)


def test_a_failure_tells_the_id_under_which_the_log_has_it(
    tmp_path: Path, log: io.StringIO
) -> None:
    async def check(made: Api) -> None:
        made.execution.live = None  # type: ignore[assignment] # whatever: it has to fail
        answer = await made.ask("POST", "/jobs", json={"key": "key-number-1", "argv": ["true"],
                                                       "directory": "/"})  # fmt: skip
        assert answer.status_code == 500
        identity = answer.headers["x-request-id"]
        assert answer.json()["error"]["message"].endswith(f"see its log for request {identity}")
        (failed,) = [line for line in lines(log) if "exception" in line]
        assert failed["request"] == identity

    with_api(tmp_path, check)


def test_health_is_not_logged_while_it_is_good(tmp_path: Path, log: io.StringIO) -> None:
    async def check(made: Api) -> None:
        await ask(made, "/healthz")
        assert [line["level"] for line in lines(log)] == ["debug"]

    with_api(tmp_path, check)


def test_ids_are_on_every_line_and_credentials_on_none(log: io.StringIO) -> None:
    secret = "updraft_user_0123456789ab_" + "f0" * 32
    with logs.about(request="r1", job="abc"):
        logging.getLogger("x").warning("token %s", secret)
        logging.getLogger("x").info("got Bearer abcdefghijkl and postgresql://me:geheim@db/x")
    logging.getLogger("x").info("after")
    first, second, last = lines(log, "x")
    assert (first["request"], first["job"], first["level"]) == ("r1", "abc", "warning")
    assert first["message"] == "token updraft_user_0123456789ab_…"
    assert second["message"] == "got Bearer … and postgresql://me:…@db/x"
    assert "request" not in last


def test_the_log_as_text_has_the_ids_too() -> None:
    record = logging.LogRecord("x", logging.INFO, "", 0, "hello %s", ("you",), None)
    with logs.about(request="r1", job="abc"):
        line = logs.TextFormatter().format(record)
    assert line.endswith(" server INFO hello you (request=r1 job=abc)")
