"""The doors for events: CloudEvents in, and an answer once all of them are durable.

`POST /v1/events` answers 202 with a receipt for each. `POST /api/v1/events` is OpenMeter's own ingest
(`api/openapi.yaml`, operation `ingestEvents`: 204, empty), so that its SDKs and collectors can point here;
content-type parameters, which OpenMeter refuses, are accepted.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

import msgspec
from opentelemetry import trace
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from kgents_api.handlers.authentication import Authentication
from kgents_api.handlers.intake import Limits, body_limit, read_events
from kgents_api.handlers.refusal import Refused
from kgents_api.handlers.request import address_of, headers_of, read_body
from kgents_api.model.rate_limit import RateLimiter, Verdict
from kgents_api.model.receipts import EventSink, PartlyStoredError, Receipt, Receipts
from kgents_common.clock import Clock
from kgents_common.envelope import Envelope
from kgents_common.errors import PermanentError
from kgents_common.telemetry import inject_headers

RETRY_AFTER_SECONDS = 2

_ENCODER = msgspec.json.Encoder()
_CARRIED = ("traceparent", "tracestate")


Answer = Callable[[list[Receipt]], Response]


def with_receipts(receipts: list[Receipt]) -> Response:
    """202 and a receipt for each event, in the request's order."""
    return Response(_ENCODER.encode(Receipts(receipts)), 202, media_type="application/json")


def as_openmeter(receipts: list[Receipt]) -> Response:
    """204 and nothing; where the last event is stored is in a header."""
    last = receipts[-1]
    if last.stored == "spool":
        return Response(status_code=204, headers={"kgents-stored": "spool"})
    return Response(status_code=204, headers={"kgents-stream-seq": str(last.stream_sequence)})


class Events:
    """An ASGI endpoint that takes events and answers in one of the two ways."""

    def __init__(
        self,
        authentication: Authentication,
        sink: EventSink,
        *,
        limits: Limits,
        clock: Clock,
        answer: Answer = with_receipts,
        limiter: RateLimiter | None = None,
    ) -> None:
        self._authentication = authentication
        self._sink = sink
        self._limits = limits
        self._clock = clock
        self._answer = answer
        self._limiter = limiter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = headers_of(scope)
        caller = await self._authentication.caller(headers, "events:write", address=address_of(scope))
        if self._limiter is not None:
            refusal = self._limiter.refusal(caller.tenant)
            if refusal is not None:  # before its body is read: it costs next to nothing
                raise _too_fast(refusal, self._limiter)
        body = await read_body(receive, headers, body_limit(headers, self._limits))
        events = read_events(headers, body, caller=caller, now=self._clock.now(), limits=self._limits)
        limited: list[tuple[bytes, bytes]] = []
        if self._limiter is not None:
            verdict = await self._limiter.take(caller.tenant, len(events))
            if not verdict.allowed:
                raise _too_fast(verdict, self._limiter)
            limited = [
                (name.encode(), value.encode()) for name, value in _limit_headers(verdict, self._limiter)
            ]
        receipts = await store(self._sink, events, trace_headers(headers))
        response = self._answer(receipts)
        response.raw_headers.extend(limited)
        await response(scope, receive, send)


def _limit_headers(verdict: Verdict, limiter: RateLimiter) -> list[tuple[str, str]]:
    """`RateLimit-*` (draft-ietf-httpapi-ratelimit-headers-03), in events and in seconds."""
    if verdict.remaining is None:
        return []
    return [
        ("ratelimit-limit", str(limiter.quota.burst)),
        ("ratelimit-remaining", str(verdict.remaining)),
        ("ratelimit-reset", str(ceil(verdict.reset_seconds))),
    ]


def _too_fast(verdict: Verdict, limiter: RateLimiter) -> Refused:
    wait = max(1, ceil(verdict.reset_seconds))
    return Refused(
        429,
        f"your tenant may send {limiter.quota.per_second} events a second; come back in {wait} s",
        reason="rate_limited",
        headers={"retry-after": str(wait), **dict(_limit_headers(verdict, limiter))},
    )


async def store(sink: EventSink, events: list[Envelope], headers: dict[str, str]) -> list[Receipt]:
    """Make the events durable.

    Raises:
        Refused: 503 where some are not: nothing is lost by sending the same request again; 413 where one is
            larger than the stream takes.
    """
    try:
        return await sink.publish(events, headers)
    except PartlyStoredError as error:
        raise Refused(
            503,
            f"{error}; send the same request again, what is stored already is recognised",
            reason="not_durable",
            headers={"retry-after": str(RETRY_AFTER_SECONDS)},
            extensions={"not_stored": [f"[{f.index}]" for f in error.failures[:100]]},
        ) from None
    except PermanentError as error:
        raise Refused(413, str(error), reason="too_large") from None


def trace_headers(headers: dict[str, str]) -> dict[str, str]:
    """The trace context to travel with the events: the current span's, else the caller's own."""
    if trace.get_current_span().get_span_context().is_valid:
        carried: dict[str, str] = {}
        inject_headers(carried)
        return carried
    return {name: headers[name][:512] for name in _CARRIED if name in headers and headers[name].isascii()}
