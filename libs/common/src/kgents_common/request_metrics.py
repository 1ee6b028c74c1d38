"""What a worker's HTTP requests are counted by: route, method and code; the door has metrics of its own."""

from __future__ import annotations

import time
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})
# A path that is no route's, and a method that is none: strangers choose both.
OTHER = "other"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60)


class RequestMetrics:
    """One process's requests; `around` an application tells of each."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "kgents_http_requests_total",
            "A worker's requests, answered; 499 where the client went first",
            ["route", "method", "code"],
            registry=registry,
        )
        self._seconds = Histogram(
            "kgents_http_request_seconds",
            "From a worker's request's head to its answer's end",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )

    def around(self, app: ASGIApp, routes: Sequence[BaseRoute]) -> ASGIApp:
        """The application, told of; a request's label is its route's path as it is declared."""

        async def told(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            status = 0
            started = time.perf_counter()

            async def watching(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                await send(message)

            try:
                await app(scope, receive, watching)
                status = status or 499
            finally:
                route = _label(routes, scope)
                method = scope["method"] if scope["method"] in METHODS else OTHER
                # What an exception leaves to the server's last handler is answered 500.
                self._requests.labels(route, method, str(status or 500)).inc()
                self._seconds.labels(route).observe(time.perf_counter() - started)

        return told


def _label(routes: Sequence[BaseRoute], scope: Scope) -> str:
    for route in routes:
        if isinstance(route, Route) and route.matches(scope)[0] is not Match.NONE:
            return route.path
    return OTHER
