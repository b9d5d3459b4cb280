"""OpenTelemetry spans, made of the log in a thread of their own: `pip install penstock[otel]`.

One span a call. A root call continues its caller's trace and has the very span id that the answer's `traceparent`
said; calls that bodies make are its children. A call's line comes when it ends, so inner calls wait here for their
root's. Where spans go is said as everywhere: OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from penstock.errors import ConfigError
from penstock.http.traces import Place, Traces
from penstock.runtime.aside import Aside
from penstock.runtime.log import Entry

if TYPE_CHECKING:
    from penstock.http.handler import Handler

_WAITING = 10_000  # calls whose callers have not ended; the oldest are dropped
_NANO = 1_000_000_000


class Spans:
    """Sends the spans of a handler's calls while it is open. Raises ConfigError where OpenTelemetry is missing."""

    def __init__(self, handler: Handler) -> None:
        try:
            from opentelemetry import trace
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import SERVICE_NAME, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
        except ImportError as error:
            raise ConfigError(f"spans need OpenTelemetry: pip install 'penstock[otel]' ({error})") from error

        class Ids(RandomIdGenerator):
            """Gives the id that the answer has told already."""

            told = 0

            def generate_span_id(self) -> int:
                told, self.told = self.told, 0
                return told or super().generate_span_id()

        self.api: Any = trace
        self.ids = Ids()
        named = Resource.create() if _named() else Resource.create({SERVICE_NAME: handler.app.name})
        self.provider = TracerProvider(resource=named, id_generator=self.ids)
        self.provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self.tracer: Any = self.provider.get_tracer("penstock")
        self.handler = handler
        self.traces = handler.traces = Traces()
        self.offset = time.time() - handler.runtime.clock()
        self.inner: dict[str, list[Entry]] = {}
        self.waiting = 0
        self.aside = Aside("penstock-spans", self._group)
        handler.runtime.log.subscribe(self.aside.read)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Send what is left."""
        self.handler.runtime.log.flush()
        self.handler.runtime.log.readers.remove(self.aside.read)
        self.handler.traces = None
        self.aside.close()
        self.provider.shutdown()

    def _group(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            if entry.root:
                self._tree(entry, self._context(self.traces.take(entry.id)))
            else:
                self.inner.setdefault(entry.parent, []).append(entry)
                self.waiting += 1
                if self.waiting > _WAITING:
                    self.waiting -= len(self.inner.pop(next(iter(self.inner))))

    def _context(self, place: Place | None) -> Any:
        """What the root call's span is a child of; the caller's span, or nothing."""
        if place is None:
            return self.api.set_span_in_context(self.api.INVALID_SPAN)
        self.ids.told = place.span
        flags = self.api.TraceFlags(place.flags)
        caller = self.api.SpanContext(place.trace, place.parent, is_remote=True, trace_flags=flags)
        return self.api.set_span_in_context(self.api.NonRecordingSpan(caller))

    def _tree(self, root: Entry, context: Any) -> None:
        ahead = [(root, context)]
        while ahead:
            entry, above = ahead.pop()
            inside = self.api.set_span_in_context(self._span(entry, above))
            children = self.inner.pop(entry.id, [])
            self.waiting -= len(children)
            ahead += [(child, inside) for child in children]

    def _span(self, entry: Entry, above: Any) -> Any:
        began = entry.arrived + self.offset
        started = began + entry.queued + entry.batched
        ended = started + entry.ran + entry.streamed
        attributes = {
            "penstock.id": entry.id,
            "penstock.outcome": entry.outcome,
            "penstock.queued_seconds": entry.queued,
            "penstock.batched_seconds": entry.batched,
            "penstock.ran_seconds": entry.ran,
            "penstock.streamed_seconds": entry.streamed,
            "penstock.batch_size": entry.batch,
            "penstock.released": entry.released,
        }
        if entry.tenant:
            attributes["penstock.tenant"] = entry.tenant
        kind = self.api.SpanKind.SERVER if entry.root else self.api.SpanKind.INTERNAL
        span = self.tracer.start_span(
            entry.service or "refused", context=above, kind=kind, attributes=attributes, start_time=int(began * _NANO)
        )
        if entry.batch:
            span.add_event("started", timestamp=int(started * _NANO))
        if entry.outcome not in ("ok", "cancelled"):
            span.set_attribute("error.type", entry.error)
            span.set_status(self.api.Status(self.api.StatusCode.ERROR, entry.error))
        span.end(int(ended * _NANO))
        return span


def _named() -> bool:
    """Whether the environment names the service."""
    return "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
