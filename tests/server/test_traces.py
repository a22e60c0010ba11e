"""Traces reach a collector that is set, and nothing is loaded where none is."""

import gzip
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.server.api import ME, Api, with_api
from updraft.server.observe.traces import NO_TRACES, traces_to
from updraft.server.services.operations import Operations

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


class Collector:
    """An OTLP collector: what it was sent, by its own protocol's parser."""

    def __init__(self) -> None:
        self.paths: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.spans: queue.SimpleQueue[Span] = queue.SimpleQueue()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                request = ExportTraceServiceRequest.FromString(body)
                collector.paths.put(self.path)
                for resource in request.resource_spans:
                    for scope in resource.scope_spans:
                        for span in scope.spans:
                            collector.spans.put(span)
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *arguments: object) -> None:
                """Say nothing."""

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    thread = threading.Thread(target=made.server.serve_forever)
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


def test_requests_and_launches_are_traced_in_their_callers_trace(
    tmp_path: Path, collector: Collector
) -> None:
    traces = traces_to(collector.url, 1.0)

    async def check(made: Api) -> None:
        operations = made.app.state.operations
        assert isinstance(operations, Operations)
        operations.traces = traces
        job = await made.submit("key-number-1")
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "Authorization": "Bearer geheim"}
        answer = await made.ask("GET", f"/jobs/{job}?x=geheim", headers=headers)
        assert answer.status_code == 200
        traces.record("launch", 10, 20, {"updraft.pool": "local"})

    with_api(tmp_path, check)
    traces.close()
    spans = [collector.spans.get(timeout=20) for _ in range(3)]
    by_name = {span.name: span for span in spans}
    assert set(by_name) == {"POST /api/v1/jobs", "GET /api/v1/jobs/{job}", "launch"}
    shown = by_name["GET /api/v1/jobs/{job}"]
    assert (shown.trace_id.hex(), shown.parent_span_id.hex()) == (TRACE, PARENT)
    attributes = {each.key: each.value for each in shown.attributes}
    assert attributes["http.response.status_code"].int_value == 200
    assert "geheim" not in str(spans)
    launch = by_name["launch"]
    assert (launch.start_time_unix_nano, launch.end_time_unix_nano) == (10, 20)
    assert collector.paths.get() == "/v1/traces"


def test_what_is_not_sampled_is_not_sent(tmp_path: Path, collector: Collector) -> None:
    traces = traces_to(collector.url, 0.0)
    traces.record("launch", 10, 20, {})
    traces.close()
    assert collector.spans.empty()


@pytest.mark.filterwarnings("ignore:.*:pytest.PytestUnhandledThreadExceptionWarning")
def test_a_collector_that_is_away_disturbs_nobody(tmp_path: Path) -> None:
    traces = traces_to("http://127.0.0.1:1", 1.0)

    async def check(made: Api) -> None:
        made.app.state.operations.traces = traces
        assert (await made.ask("GET", "/jobs", ME)).status_code == 200

    with_api(tmp_path, check)
    traces.close()


def test_what_only_some_servers_need_is_not_loaded_by_all() -> None:
    assert traces_to("", 1.0) is NO_TRACES
    program = (
        "import sys\n"
        "from updraft.server import app\n"
        "from updraft.server.observe.traces import traces_to\n"
        "traces_to('', 1.0)\n"
        "late = {'opentelemetry', 'prometheus_client', 'requests', 'httpx', 'smtplib', 'tarfile'}\n"
        "assert not late & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
