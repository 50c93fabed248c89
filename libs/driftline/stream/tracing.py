"""
Spans for OpenTelemetry, where OTEL_EXPORTER_OTLP_ENDPOINT names a collector: one a batch in which somebody's trace was sampled, linked to
such traces. A span a message would cost more than the message does.

A span says where a batch lay and how long it took, and nothing of what was in it. It is sent by a thread of OpenTelemetry's own, from a
queue of bounded length; whatever goes wrong there is logged, and the data plane does not hear of it. Nothing of OpenTelemetry is imported
unless the variable is set: the extra `otel` has it. How spans are sent (headers, certificates, timeouts) is for OTEL_* variables to say.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from driftline.contracts import traceparent
from driftline.errors import Fatal
from driftline.features import texts
from driftline.logs import log
from driftline.stream.batch import Batch, Varlen

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
LINKS_MAX = 32  # of a span; it says how many traces are left out
FLUSH_S = 3.0  # the longest wait for what is still to be sent, when a process drains


def tracing_of(service: str, pipeline: str, environment: Mapping[str, str] = os.environ) -> Tracing | None:
    """None where no collector is named. Raises Fatal where one is, and the extra is not installed."""
    if not environment.get(ENDPOINT):
        return None
    try:
        import opentelemetry.sdk.trace.export  # noqa: F401 - here, where no worker is forked yet
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        raise Fatal(f"{ENDPOINT} is set, but OpenTelemetry is not installed: install the extra, driftline[otel], or unset it") from error
    logging.getLogger("opentelemetry.util.re").setLevel(logging.CRITICAL)  # it tells a header that is malformed, which may be a secret
    return Tracing(service, pipeline, OTLPSpanExporter())


class Tracing:
    """The spans of one operator. Nothing connects, and no thread begins, before the first: a worker is forked from who makes this."""

    def __init__(self, service: str, pipeline: str, exporter: SpanExporter) -> None:
        self._service = service
        self._pipeline = pipeline
        self._exporter = exporter
        self._broken = False
        self._provider: TracerProvider | None = None
        self._tracer: Any = None

    def batch(self, topic: str, batch: Batch, seconds: float, now_ms: int) -> None:
        """A batch of one of our own topics was applied just now, in so many seconds."""
        columns = [traceparent.column_of(table) for table in batch.tables.values()]
        self.span(topic, batch.partition, (batch.first_offset, batch.next_offset - 1), len(batch), columns, seconds, now_ms)

    def span(
        self, topic: str, partition: int, offsets: tuple[int, int], records: int, traces: Sequence[Varlen], seconds: float, now_ms: int
    ) -> None:
        """The same of records from the first to the last of `offsets`, with their trace contexts. None is sampled: there is no span."""
        sampled = [some for column in traces if len(some := traceparent.sampled(column))]
        if not sampled or self._broken:
            return
        together = Varlen.concat(sampled)
        _, firsts = texts.groups(Varlen(*together.arrays))
        links = [_link(value) for value in together.take(firsts[:LINKS_MAX]).texts()]
        attributes: dict[str, str | int] = {
            "driftline.pipeline": self._pipeline,
            "driftline.offset.first": offsets[0],
            "driftline.offset.last": offsets[1],
            "driftline.links_left_out": len(firsts) - len(links),
            "messaging.system": "kafka",
            "messaging.operation.type": "process",
            "messaging.destination.name": topic,
            "messaging.destination.partition.id": str(partition),
            "messaging.batch.message_count": records,
        }
        try:
            self._record(f"process {topic}", links, attributes, 1_000_000 * now_ms - round(1e9 * seconds), 1_000_000 * now_ms)
        except Exception as error:  # whatever a library raises: what it is told must not stop what it is told of
            self._broken = True
            log.error("no more spans", because=type(error).__name__)

    def _record(self, name: str, links: Sequence[Any], attributes: Mapping[str, str | int], began_ns: int, ended_ns: int) -> None:
        from opentelemetry.context import Context
        from opentelemetry.trace import SpanKind

        if self._tracer is None:
            self._begin()
        span = self._tracer.start_span(name, Context(), SpanKind.CONSUMER, attributes, links, began_ns)
        span.end(ended_ns)

    def _begin(self) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        resource = Resource.create({"service.name": f"driftline-{self._service}", "service.namespace": "driftline"})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("driftline")

    def close(self) -> None:
        """Send what is still there, for a moment at most. Blocks, so call it in a thread."""
        if self._provider is not None:
            closing = threading.Thread(target=self._provider.shutdown, daemon=True)
            closing.start()
            closing.join(FLUSH_S)


def _link(value: str) -> Any:
    """A link to the sender's span."""
    from opentelemetry.trace import Link, SpanContext, TraceFlags

    trace, parent = (int(value[part], 16) for part in (traceparent.TRACE, traceparent.PARENT))
    return Link(SpanContext(trace, parent, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED)))
