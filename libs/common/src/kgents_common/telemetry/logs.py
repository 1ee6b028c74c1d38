"""Structured logs: one JSON object a line on standard output, with the trace it belongs to.

Our own lines take structlog's fast path; third parties' (`uvicorn`, `nats`, `faststream`) come through the
standard library's root logger in the same shape. Payloads, secrets and personal data are never logged.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, TextIO

import orjson
import structlog
from opentelemetry import trace
from structlog.typing import EventDict, Processor, WrappedLogger

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_THIRD_PARTIES = ("uvicorn", "uvicorn.error", "uvicorn.access", "faststream", "faststream.broker", "nats")


def configure_logs(*, service: str, instance: str, level: str = "info", to: TextIO | None = None) -> None:
    """Set up both ways of logging for this process.

    Args:
        service: Bound to every line, as is `instance`.
        level: `debug`, `info`, `warning` or `error`.
        to: A text stream with a `buffer`; standard output where None.
    """
    stream = to or sys.stdout

    def name_process(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        event["service"] = service
        event["instance"] = instance
        return event

    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        name_process,
        _add_trace,
    ]
    structlog.configure(
        processors=[
            *shared,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(serializer=_to_bytes),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.BytesLoggerFactory(file=stream.buffer),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(serializer=lambda v, **_: _to_bytes(v).decode()),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(max(_LEVELS[level], logging.WARNING))
    for name in _THIRD_PARTIES:
        logger = logging.getLogger(name)
        logger.handlers = []
        logger.propagate = True


def _to_bytes(value: Any, **_: Any) -> bytes:
    return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS)


def _add_trace(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    # An unsampled trace has ids too; `is_recording` would drop them.
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"] = format(context.trace_id, "032x")
        event["span_id"] = format(context.span_id, "016x")
    return event
