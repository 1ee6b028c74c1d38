"""OpenTelemetry traces through HTTP, NATS headers and workers; a batch links the traces it joins.

The environment is OpenTelemetry's own (`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_TRACES_SAMPLER`, …). Without an
endpoint nothing is sampled or exported, and the trace context still travels.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import Link, Span, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

# The SDK keeps 128 links of a span and drops the rest without a word.
MAX_LINKS = 128

_PROPAGATOR = TraceContextTextMapPropagator()


class Tracing:
    """This process's tracer provider, passed down; never the global one."""

    def __init__(
        self, *, service: str, instance: str, endpoint: str | None, exporter: SpanExporter | None = None
    ) -> None:
        """Set up; nothing is sent yet.

        Args:
            endpoint: The collector's base URL; None to export nothing.
            exporter: Instead of OTLP over HTTP, for tests.
        """
        resource = Resource.create({"service.name": f"kgent-{service}", "service.instance.id": instance})
        if exporter is None and endpoint is None:
            self._provider = TracerProvider(resource=resource, sampler=ALWAYS_OFF)
        else:
            self._provider = TracerProvider(resource=resource)
            # Few at a time: the event loop stands still while a thread encodes them.
            self._provider.add_span_processor(
                BatchSpanProcessor(exporter or _otlp(), schedule_delay_millis=200)
            )
        self.tracer: Tracer = self._provider.get_tracer(f"kgents_{service}")

    def stop(self) -> None:
        """Flush what is buffered, within five seconds; blocks, so call it off the event loop."""
        self._provider.force_flush(5000)
        self._provider.shutdown()


def _otlp() -> SpanExporter:
    # A tenth of a service's start and several MiB, which a process that exports nothing does without.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()


def context_from_headers(headers: Mapping[str, str] | None) -> Context:
    """The trace context that `traceparent`/`tracestate` carry; empty where absent or wrong."""
    return _PROPAGATOR.extract(headers or {}, context=Context())


def inject_headers(headers: MutableMapping[str, str], context: Context | None = None) -> None:
    """Set `traceparent` and `tracestate` from the current span, or from `context`."""
    _PROPAGATOR.inject(headers, context=context)


def exemplar(span: Span | None = None) -> dict[str, str] | None:
    """What leads from a histogram's observation to its trace; None where the trace is not kept.

    Args:
        span: The observed one; the current one where None.
    """
    context = (trace.get_current_span() if span is None else span).get_span_context()
    return {"trace_id": format(context.trace_id, "032x")} if context.trace_flags.sampled else None


def link_from_headers(headers: Mapping[str, str] | None) -> Link | None:
    """A link to the span whose context the headers carry; None where they carry none."""
    if not headers or "traceparent" not in headers:
        return None
    span_context = trace.get_current_span(context_from_headers(headers)).get_span_context()
    return Link(span_context) if span_context.is_valid else None
