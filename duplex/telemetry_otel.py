"""Traces to an OpenTelemetry collector, by OTLP over HTTP. Needs ``pip install 'duplex-runtime[otel]'``.

The event loop makes the spans of a finished turn (some 0.2 ms) and puts them into a bounded queue; the SDK's own thread
sends them. A collector that is slow or gone costs spans, and never a call: what does not fit into the queue is dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from duplex import __version__
from duplex.config import TelemetryConfig
from duplex.errors import MissingDependencyError
from duplex.telemetry import Span, TracedTurn, TurnTraces

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

log = logging.getLogger("duplex.telemetry")

TRACES_PATH = "/v1/traces"
_SEND_WITHIN_S = 5.0
_CLOSE_WITHIN_S = 3.0


def traces_url(endpoint: str) -> str:
    """Where spans go: ``endpoint`` as it is if it has a path, with OTLP's own where it has none."""
    return endpoint if urlsplit(endpoint).path not in ("", "/") else endpoint.rstrip("/") + TRACES_PATH


class TurnExporter:
    """Sends each finished turn. ``observer`` is what sessions' lines tell; ``close`` sends what waits.

    ``exporter``: takes the place of the one that ``config`` describes. Raises ``MissingDependencyError``.
    """

    def __init__(self, config: TelemetryConfig, exporter: SpanExporter | None = None) -> None:
        try:
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise MissingDependencyError("opentelemetry-sdk", "otel") from error
        resource = Resource.create({"service.name": config.service_name, "service.version": __version__})
        self._provider: TracerProvider = TracerProvider(resource=resource, shutdown_on_exit=False)
        batches = BatchSpanProcessor(
            exporter or _otlp(config),
            max_queue_size=config.queue_spans,
            max_export_batch_size=min(512, config.queue_spans),
            schedule_delay_millis=config.send_every_s * 1000.0,
        )
        self._provider.add_span_processor(batches)
        self._tracer = self._provider.get_tracer("duplex", __version__)
        self.observer = TurnTraces(self._send)

    def _send(self, turn: TracedTurn) -> None:
        from opentelemetry.context import Context
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        root = turn.root
        parent = self._tracer.start_span(
            root.name,
            Context(),  # of its own: whatever else is traced in this process is not what a turn is part of
            kind=SpanKind.SERVER,
            attributes=root.attributes,
            start_time=_ns(root.start_unix_s),
        )
        if turn.failed is not None:
            parent.set_status(Status(StatusCode.ERROR, turn.failed))
        within = set_span_in_context(parent, Context())
        for child in turn.children:
            span = self._tracer.start_span(
                child.name, within, attributes=_named(child), start_time=_ns(child.start_unix_s)
            )
            for name, at_unix_s in child.notes:
                span.add_event(name, timestamp=_ns(at_unix_s))
            span.end(_ns(child.end_unix_s))
        parent.end(_ns(root.end_unix_s))

    async def close(self) -> None:
        """Sends what waits, for three seconds at most; a collector that is gone is not waited for longer."""
        loop, closed = asyncio.get_running_loop(), asyncio.Event()

        def shut() -> None:
            self._provider.shutdown()
            with contextlib.suppress(RuntimeError):  # the loop did not wait
                loop.call_soon_threadsafe(closed.set)

        # No executor's thread: those are joined when the loop ends, however long that takes.
        threading.Thread(target=shut, name="duplex-traces", daemon=True).start()
        try:
            async with asyncio.timeout(_CLOSE_WITHIN_S):
                await closed.wait()
        except TimeoutError:
            log.warning("the last traces were not taken in time")


def _otlp(config: TelemetryConfig) -> SpanExporter:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        raise MissingDependencyError("opentelemetry-exporter-otlp-proto-http", "otel") from error
    assert config.otlp_endpoint is not None
    headers = {name: value.get_secret_value() for name, value in config.otlp_headers.items()}
    return OTLPSpanExporter(traces_url(config.otlp_endpoint), headers=headers, timeout=_SEND_WITHIN_S)


def _named(span: Span) -> dict[str, Any]:
    return {"duplex.span_ms": round((span.end_unix_s - span.start_unix_s) * 1000.0, 3), **span.attributes}


def _ns(unix_s: float) -> int:
    return round(unix_s * 1e9)
