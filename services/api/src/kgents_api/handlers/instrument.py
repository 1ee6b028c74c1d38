"""What surrounds every request: its span and its metrics. What fails is for the server's last handler."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping
from contextvars import Token

from opentelemetry import context, trace
from opentelemetry.trace import Span, SpanKind, Tracer
from prometheus_client import Counter
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kgents_api.handlers.refusal import Refused
from kgents_api.handlers.request import ClientGone
from kgents_api.metrics import Metrics
from kgents_common.problems import problem
from kgents_common.telemetry import context_from_headers, exemplar

_METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})
OTHER = "other"


class Instrument:
    """Wraps the whole application, as plain ASGI: this runs for every request.

    Args:
        direct: Method and path to an endpoint that is called without a router in between.
        routes: Path, or template of one, to its label in metrics and spans; any other path is `other`.
        tracer: None to make no spans; the caller's trace context then travels on as it came.
        max_concurrency: More requests than this at once are answered 503.
        unlimited: Labels of routes that do not count, being answered at once or having a limit of their own.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        direct: Mapping[tuple[str, str], ASGIApp],
        routes: Mapping[str, str],
        metrics: Metrics,
        tracer: Tracer | None,
        max_concurrency: int,
        unlimited: Collection[str] = (),
    ) -> None:
        self._app = app
        self._direct = direct
        self._routes = routes
        self._templates = [(compile_path(path)[0], label) for path, label in routes.items() if "{" in path]
        self._metrics = metrics
        self._tracer = tracer
        self._max_concurrency = max_concurrency
        self._unlimited = frozenset(unlimited)
        self._running = 0
        self._counters: dict[tuple[str, str, int], Counter] = {}
        self._latencies = {label: metrics.latency.labels(label) for label in {*routes.values(), OTHER}}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        app = self._direct.get((scope["method"], scope["path"]), self._app)
        route = self._routes.get(scope["path"]) or self._by_template(scope["path"])
        status = 500
        has_begun = False
        span: Span | None = None
        attached: Token[context.Context] | None = None

        async def watching(message: Message) -> None:
            nonlocal status, has_begun
            if message["type"] == "http.response.start":
                status = message["status"]
                has_begun = True
            await send(message)

        counted = False

        async def receiving() -> Message:
            # A request counts once it is whole: one that comes slowly costs its bytes, and no place.
            nonlocal counted
            message = await receive()
            if not counted and message["type"] == "http.request" and not message.get("more_body", False):
                if self._running >= self._max_concurrency:
                    raise Refused(
                        503, "too many requests at once", reason="too_busy", headers={"retry-after": "1"}
                    )
                counted = True
                self._running += 1
            return message

        limited = receive if route in self._unlimited or route.startswith("/health") else receiving
        try:
            if self._tracer is not None:
                span = self._tracer.start_span(
                    f"{scope['method']} {route}", context=_carried(scope), kind=SpanKind.SERVER
                )
                attached = context.attach(trace.set_span_in_context(span))
            await app(scope, limited, watching)
        except Refused as refusal:
            self._metrics.refused.labels(refusal.reason).inc()
            await refusal.response(scope, receive, watching)
        except ClientGone:
            status = 499
        except asyncio.CancelledError:  # the server's, when its time to stop is over
            if has_begun:
                raise
            await problem(
                503, "this process stops; send the same request again", headers={"retry-after": "1"}
            )(scope, receive, watching)
        finally:
            if span is not None and attached is not None:
                context.detach(attached)
                if span.is_recording():
                    span.set_attribute("http.response.status_code", status)
                span.end()
            self._running -= counted
            self._note(route, scope["method"], status, time.perf_counter() - started, span)

    def _by_template(self, path: str) -> str:
        """The label of the route that has parameters and matches, else `other`."""
        return next((label for pattern, label in self._templates if pattern.match(path)), OTHER)

    def _note(self, route: str, method: str, status: int, seconds: float, span: Span | None) -> None:
        key = (route, method if method in _METHODS else OTHER, status)
        counter = self._counters.get(key)
        if counter is None:
            counter = self._counters[key] = self._metrics.requests.labels(key[0], key[1], str(status))
        counter.inc()
        self._latencies[route].observe(seconds, exemplar(span) if span is not None else None)


_NOTHING_CARRIED = context.Context()


def _carried(scope: Scope) -> context.Context:
    """The caller's trace context."""
    carried = {
        name.decode(): value.decode("latin-1")
        for name, value in scope["headers"]
        if name in (b"traceparent", b"tracestate")
    }
    return context_from_headers(carried) if carried else _NOTHING_CARRIED
