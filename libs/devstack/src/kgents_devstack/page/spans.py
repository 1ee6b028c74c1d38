"""The spans that services export, kept by trace for as long as somebody may look; no storage."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

MAX_TRACES = 2000
MAX_SPANS_OF_A_TRACE = 200


@dataclass(frozen=True, slots=True)
class Span:
    """One step of a trace; times in nanoseconds since 1970.

    Attributes:
        is_joined: It is a batch's, in a trace of its own, and links to this trace.
    """

    service: str
    name: str
    span_id: str
    parent_id: str
    started: int
    ended: int
    is_joined: bool = False


class Spans:
    """The newest traces, the oldest of them forgotten."""

    def __init__(self) -> None:
        self._traces: OrderedDict[str, list[Span]] = OrderedDict()

    def take(self, body: bytes) -> None:
        """An OTLP/HTTP request in protobuf.

        Raises:
            ValueError: It is none.
        """
        request = ExportTraceServiceRequest()
        try:
            request.ParseFromString(body)
        except Exception as error:  # protobuf's DecodeError, which has no types of its own
            raise ValueError("not an OTLP request in protobuf") from error
        for resource in request.resource_spans:
            service = next(
                (a.value.string_value for a in resource.resource.attributes if a.key == "service.name"), ""
            )
            for scope in resource.scope_spans:
                for span in scope.spans:
                    kept = Span(
                        service,
                        span.name,
                        span.span_id.hex(),
                        span.parent_span_id.hex(),
                        span.start_time_unix_nano,
                        span.end_time_unix_nano,
                    )
                    trace_id = span.trace_id.hex()
                    self._keep(trace_id, kept)
                    for linked in {link.trace_id.hex() for link in span.links} - {trace_id}:
                        self._keep(linked, replace(kept, is_joined=True))

    def of(self, trace_id: str) -> list[Span]:
        """A trace's spans by their beginning."""
        return sorted(self._traces.get(trace_id, ()), key=lambda span: span.started)

    def _keep(self, trace_id: str, span: Span) -> None:
        kept = self._traces.setdefault(trace_id, [])
        self._traces.move_to_end(trace_id)
        if len(kept) < MAX_SPANS_OF_A_TRACE:
            kept.append(span)
        while len(self._traces) > MAX_TRACES:
            self._traces.popitem(last=False)
