"""Spans as a collector receives them: they continue the caller's trace, and nest as the calls did."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from http_stand import Client, get

import penstock as ps
from penstock.http.serve import serving

pytest.importorskip("opentelemetry.sdk")
pytest.importorskip("opentelemetry.exporter.otlp.proto.http")

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = "00-0af7651916cd43dd8448eb211c80319d-b7ad6b7169203331-00"


@ps.service(batch=ps.Batch(max_size=4, max_wait=0.0))
def leaf(xs: list[int]) -> list[int | Exception]:
    return [ValueError(x) if x == 13 else x for x in xs]


@ps.service
async def middle(x: int) -> int:
    return await leaf(x)


@ps.service
async def top(x: int) -> int:
    return sum(await asyncio.gather(middle(x), middle(x + 1)))


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """An OTLP collector; its list has the spans that came."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    spans: list[Any] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            import gzip

            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                name = {a.key: a.value.string_value for a in resource.resource.attributes}["service.name"]
                spans.extend((name, span) for scope in resource.scope_spans for span in scope.spans)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
        yield spans
        server.shutdown()


def test_spans_continue_traces_and_nest(collector: list[Any]) -> None:
    from penstock.http.spans import Spans

    async def main() -> list[bytes]:
        app = ps.App(top, middle, leaf, name="spanned", log=False)
        heads = []
        async with serving(app, grace=1.0, observers=[Spans]) as server:
            client = Client(*await asyncio.open_connection("127.0.0.1", server.port))
            for path, x, trace in (("/top", 1, CALLER), ("/middle", 13, ""), ("/leaf", 1, UNSAMPLED)):
                lines = [f"traceparent: {trace}"] if trace else []
                client.send(get(path, *lines, method="POST", body=b'{"x": %d}' % x))
                status, head, _ = await client.answer()
                assert status == (500 if x == 13 else 200)
                heads.append(head)
            assert server.handler.traces is not None  # type: ignore[union-attr]
            client.close()
        return heads

    heads = asyncio.run(main())
    assert {name for name, _ in collector} == {"spanned"}
    spans = {span.span_id: span for _, span in collector}
    ours = [span for span in spans.values() if span.trace_id.hex() == CALLER[3:35]]
    assert sorted(span.name for span in ours) == ["leaf", "leaf", "middle", "middle", "top"]
    (root,) = [span for span in ours if span.name == "top"]
    assert root.parent_span_id.hex() == CALLER[36:52]
    assert f"traceparent: 00-{CALLER[3:35]}-{root.span_id.hex()}-01".encode() in heads[0]
    for span in ours:
        if span is not root:
            above = spans[span.parent_span_id]
            assert above.name == {"middle": "top", "leaf": "middle"}[span.name]
            assert above.start_time_unix_nano - 2000 <= span.start_time_unix_nano
            assert span.end_time_unix_nano <= above.end_time_unix_nano + 2000
    others = [span for span in spans.values() if span not in ours]
    assert sorted((span.name, span.status.code) for span in others) == [("leaf", 2), ("middle", 2)]  # none that is unsampled
    assert {a.key: a.value.string_value for a in others[0].attributes}["error.type"] == "ValueError"
    assert len({span.trace_id for span in others}) == 1 and others[0].trace_id.hex() != CALLER[3:35]


def test_places_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    from penstock.http.traces import Traces

    monkeypatch.setattr("penstock.http.traces._MOST", 2)
    traces = Traces()
    for n in range(3):
        traces.add(str(n), CALLER.encode(), b"traceparent: " + CALLER.encode() + b"\r\n")
    assert traces.take("0") is None and len(traces.places) == 2
    place = traces.take("2")
    assert place is not None and (place.parent, place.flags) == (0xB7AD6B7169203331, 1)
