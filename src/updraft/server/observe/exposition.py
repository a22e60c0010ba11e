"""The measures as Prometheus reads them.  Imported when somebody asks for the first time."""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

import updraft
from updraft.server.observe.measures import Histogram, Live, Measures

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def render(measures: Measures, live: Live) -> bytes:
    """Return all measures in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Once(measures, live))
    return generate_latest(registry)


class _Once(Collector):
    """Has the values of one moment; a registry of its own asks for them once."""

    def __init__(self, measures: Measures, live: Live) -> None:
        self._measures = measures
        self._live = live

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        yield from self._now(self._live)
        yield from self._counted(self._measures)
        about = GaugeMetricFamily("updraft_info", "This server's release", labels=["version"])
        about.add_metric([updraft.__version__], 1)
        yield about
        cpu = CounterMetricFamily("updraft_process_cpu_seconds", "CPU time of the server")
        cpu.add_metric([], time.process_time())
        yield cpu

    def _now(self, live: Live) -> Iterator[Metric]:
        queued = GaugeMetricFamily("updraft_queue_jobs", "Jobs that wait", labels=["pool"])
        running = GaugeMetricFamily("updraft_running_jobs", "Jobs that run", labels=["pool"])
        for family, counts in ((queued, live.queued), (running, live.running)):
            for pool, count in sorted(counts.items()):
                family.add_metric([pool], count)
            yield family
        runners = GaugeMetricFamily("updraft_runners", "Runners", labels=["pool", "state"])
        for (pool, state), count in sorted(live.runners.items()):
            runners.add_metric([pool, state], count)
        yield runners
        connections = GaugeMetricFamily("updraft_connections", "Open connections", labels=["kind"])
        for kind, count in sorted(live.connections.items()):
            connections.add_metric([kind], count)
        yield connections
        yield _total("updraft_database_commits", "Transactions that were committed", live.commits)
        yield _total("updraft_database_writes", "Writes that they carried", live.writes)

    def _counted(self, measures: Measures) -> Iterator[Metric]:
        yield _histograms(
            "updraft_queue_wait_seconds", "From a submission to its grant", measures.waits
        )
        yield _histograms(
            "updraft_launch_seconds", "From a grant to the command's start", measures.launches
        )
        relayed = CounterMetricFamily(
            "updraft_relay_bytes", "Bytes of streams that passed", labels=["direction"]
        )
        for direction in ("to_client", "to_runner"):
            relayed.add_metric([direction], measures.relayed[direction])
        yield relayed
        lag = HistogramMetricFamily(
            "updraft_event_loop_lag_seconds", "How late the event loop comes back"
        )
        lag.add_metric([], *_buckets(measures.lag))
        yield lag
        passes = CounterMetricFamily("updraft_loop_passes", "Passes of loops", labels=["loop"])
        failed = CounterMetricFamily("updraft_loop_errors", "Passes that failed", labels=["loop"])
        spent = CounterMetricFamily("updraft_loop_seconds", "Time in passes", labels=["loop"])
        for loop, count in sorted(measures.passes.items()):
            passes.add_metric([loop], count)
            failed.add_metric([loop], measures.failed_passes[loop])
            spent.add_metric([loop], measures.pass_seconds[loop])
        yield from (passes, failed, spent)
        errors = CounterMetricFamily(
            "updraft_errors", "Refused and failed requests", labels=["code"]
        )
        for code, count in sorted(measures.errors.items()):
            errors.add_metric([code], count)
        yield errors
        requests = SummaryMetricFamily(
            "updraft_http_request_seconds",
            "HTTP requests, by route template",
            labels=["method", "route", "status"],
        )
        for key, count in sorted(measures.requests.items()):
            method, route, status = key
            seconds = measures.request_seconds[key]
            requests.add_metric([method, route, str(status)], count_value=count, sum_value=seconds)
        yield requests
        notified = CounterMetricFamily(
            "updraft_notifications", "Notifications", labels=["receiver", "result"]
        )
        for (receiver, result), count in sorted(measures.notified.items()):
            notified.add_metric([receiver, result], count)
        yield notified


def _total(name: str, text: str, value: float) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text)
    family.add_metric([], value)
    return family


def _histograms(name: str, text: str, by_pool: dict[str, Histogram]) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, text, labels=["pool"])
    for pool, histogram in sorted(by_pool.items()):
        family.add_metric([pool], *_buckets(histogram))
    return family


def _buckets(histogram: Histogram) -> tuple[list[tuple[str, float]], float]:
    """Return the buckets as Prometheus has them, each with all that is below, and the sum."""
    found: list[tuple[str, float]] = []
    below = 0
    for bound, count in zip((*histogram.bounds, None), histogram.counts, strict=True):
        below += count
        found.append(("+Inf" if bound is None else repr(float(bound)), below))
    return found, histogram.sum
