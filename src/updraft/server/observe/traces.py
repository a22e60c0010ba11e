"""Traces for an OpenTelemetry collector, where one is set; else nothing, at no cost.

The SDK is an extra (``updraft-cloud[telemetry]``) and is imported only when it is used.  Providers
are this server's own: nothing global is set, and no library is instrumented behind its back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import updraft
from updraft import errors

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

Attributes = Mapping[str, str | int | float | bool]


class Span(Protocol):
    """Something that is under way and is traced."""

    def set(self, name: str, value: str | int | float | bool) -> None:
        """Note what became known of it."""

    def rename(self, name: str) -> None:
        """Call it otherwise, now that it is known what it is."""

    def failed(self, why: str) -> None:
        """It did not end well."""


class Traces(Protocol):
    """Where traces go."""

    def span(self, name: str, headers: Mapping[str, str]) -> Any:
        """Return a context manager that yields a ``Span`` in the trace that ``headers`` name."""

    def record(self, name: str, start_ns: int, end_ns: int, attributes: Attributes) -> None:
        """Trace what is over already, like a job's launch."""

    def close(self) -> None:
        """Send what is left.  Blocks for a few seconds at most."""


class _NoSpan:
    def set(self, name: str, value: str | int | float | bool) -> None:
        """Nobody looks."""

    def rename(self, name: str) -> None:
        """Nobody looks."""

    def failed(self, why: str) -> None:
        """Nobody looks."""


class _NoTraces:
    @contextmanager
    def span(self, name: str, headers: Mapping[str, str]) -> Iterator[Span]:
        """Trace nothing."""
        yield _NO_SPAN

    def record(self, name: str, start_ns: int, end_ns: int, attributes: Attributes) -> None:
        """Trace nothing."""

    def close(self) -> None:
        """There is nothing to send."""


_NO_SPAN = _NoSpan()
NO_TRACES: Traces = _NoTraces()


def traces_to(endpoint: str, sample: float) -> Traces:
    """Return traces that go to a collector (OTLP over HTTP); ``sample``: the share that is traced.

    Raises ``errors.BadConfiguration`` when the extra is not installed.
    """
    if not endpoint:
        return NO_TRACES
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
            OTLPSpanExporter,
        )
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased  # noqa: PLC0415
    except ImportError as error:
        raise errors.BadConfiguration(
            "telemetry.otlp_endpoint needs OpenTelemetry; install updraft-cloud[telemetry]"
        ) from error
    about = {"service.name": "updraft-server", "service.version": updraft.__version__}
    provider = TracerProvider(
        resource=Resource.create(about),
        sampler=ParentBased(TraceIdRatioBased(sample)),
        shutdown_on_exit=False,
    )
    address = endpoint if endpoint.endswith("/v1/traces") else f"{endpoint}/v1/traces"
    exporter = OTLPSpanExporter(endpoint=address, timeout=5)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return _Sent(provider)


class _SentSpan:
    def __init__(self, span: Any) -> None:
        self._span = span

    def set(self, name: str, value: str | int | float | bool) -> None:
        """Note an attribute."""
        self._span.set_attribute(name, value)

    def rename(self, name: str) -> None:
        """Change the name."""
        self._span.update_name(name)

    def failed(self, why: str) -> None:
        """Mark as an error."""
        from opentelemetry.trace import Status, StatusCode  # noqa: PLC0415 - the extra

        self._span.set_status(Status(StatusCode.ERROR, why))


class _Sent:
    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415 - the extra
            TraceContextTextMapPropagator,
        )

        self._provider = provider
        self._tracer = provider.get_tracer("updraft.server", updraft.__version__)
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def span(self, name: str, headers: Mapping[str, str]) -> Iterator[Span]:
        """Trace a block, as part of the trace of whoever asked."""
        from opentelemetry.trace import SpanKind  # noqa: PLC0415 - the extra

        parent = self._propagator.extract(headers)
        with self._tracer.start_as_current_span(name, parent, SpanKind.SERVER) as span:
            yield _SentSpan(span)

    def record(self, name: str, start_ns: int, end_ns: int, attributes: Attributes) -> None:
        """Trace what is over."""
        span = self._tracer.start_span(name, start_time=start_ns, attributes=dict(attributes))
        span.end(end_ns)

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()
