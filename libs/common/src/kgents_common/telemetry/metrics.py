"""Prometheus metrics of one process: its registry and its `/metrics` answer; the names are the services' own.

A label has few values that we know beforehand: never a tenant, a subject, an id or a URL.
"""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import Response

from kgents_common.retry import TALLY


def new_registry() -> CollectorRegistry:
    """A registry with the process's own figures (memory, CPU, descriptors, garbage collection, waits)."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    registry.register(TALLY)
    return registry


def metrics_response(registry: CollectorRegistry, request: Request) -> Response:
    """The registry in the format the scraper asks for (exemplars only appear in OpenMetrics)."""
    encoder, content_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encoder(registry), headers={"content-type": content_type})
