"""One event is one trace: HTTP, NATS headers, worker, OpenMeter; where a batch joins many, it links them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import msgspec
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from .conftest import System, make_event, wait_for


@dataclass
class Collector:
    """An OTLP receiver that keeps what it gets: spans as (service, name, trace, span, parent, links)."""

    url: str = ""
    spans: list[tuple[str, str, str, str, str, list[str]]] = field(default_factory=list)

    def named(self, name: str) -> list[tuple[str, str, str, str, str, list[str]]]:
        return [span for span in list(self.spans) if span[1] == name]


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    found = Collector()

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                names = {a.key: a.value.string_value for a in resource.resource.attributes}
                for scope in resource.scope_spans:
                    for span in scope.spans:
                        found.spans.append(
                            (
                                names["service.name"],
                                span.name,
                                span.trace_id.hex(),
                                span.span_id.hex(),
                                span.parent_span_id.hex(),
                                [link.trace_id.hex() for link in span.links],
                            )
                        )
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    found.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", found.url)
    yield found
    server.shutdown()
    thread.join()


def test_an_event_alone_and_events_together(collector: Collector, make_system: Callable[..., System]) -> None:
    """Rule: OpenTelemetry traces through HTTP → NATS headers → worker → OpenMeter as one trace."""
    system = make_system()
    trace = "0af7651916cd43dd8448eb211c80319c"
    sent = httpx.post(
        f"{system.stack.service('api').url}/v1/events",
        content=msgspec.json.encode(make_event()),
        headers={
            "authorization": f"Bearer {system.stack.keys['acme']}",
            "content-type": "application/cloudevents+json",
            "traceparent": f"00-{trace}-b7ad6b7169203331-01",
        },
    )
    assert sent.status_code == 202
    wait_for(
        lambda: len([span for span in collector.spans if span[2] == trace]) >= 3,
        state=lambda: collector.spans,
    )
    by_name = {span[1]: span for span in collector.spans if span[2] == trace}
    door, apply, deliver = (
        by_name[name] for name in ("POST /v1/events", "metering apply", "metering deliver")
    )
    assert (door[0], door[4]) == ("kgent-api", "b7ad6b7169203331")
    assert (apply[0], apply[4]) == ("kgent-metering", door[3])
    assert deliver[0] == "kgent-metering"

    for _ in range(3):
        system.post(40)
    system.settle()
    for name in ("metering apply", "metering deliver"):
        wait_for(lambda name=name: _links_to_a_door(collector, name), state=lambda: collector.spans)


def _links_to_a_door(collector: Collector, name: str) -> bool:
    """Whether a batch's span links to the trace of a request."""
    doors = {span[2] for span in collector.named("POST /v1/events")}
    return any(set(span[5]) & doors for span in collector.named(name))
