"""Logs, traces and metrics bound to our names; the libraries do the work."""

from kgents_common.telemetry.logs import configure_logs
from kgents_common.telemetry.metrics import metrics_response, new_registry
from kgents_common.telemetry.traces import (
    Tracing,
    context_from_headers,
    exemplar,
    inject_headers,
    link_from_headers,
)

__all__ = [
    "Tracing",
    "configure_logs",
    "context_from_headers",
    "exemplar",
    "inject_headers",
    "link_from_headers",
    "metrics_response",
    "new_registry",
]
