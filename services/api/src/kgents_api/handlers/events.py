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
from kgents_api.handlers.intake import (
    Limits,
    body_limit,
    is_batch,
    prefers_leniency,
    read_each,
    read_events,
)
from kgents_api.handlers.refusal import Refused
from kgents_api.handlers.request import address_of, expected_size, headers_of, read_packed_body
from kgents_api.model.receipts import EventSink, PartlyStoredError, Receipt, Receipts, RefusedEvent
from kgents_api.model.tenant_limits import FairShare, TenantLimits, Told
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


def one_by_one(receipts: list[Receipt], refused: list[RefusedEvent]) -> Response:
    """202 and a receipt for each event that was taken; the others, by their places, and why."""
    return Response(
        _ENCODER.encode(Receipts(receipts, refused)),
        202,
        headers={"preference-applied": "handling=lenient"},
        media_type="application/json",
    )


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
        share: FairShare,
        *,
        limits: Limits,
        clock: Clock,
        answer: Answer = with_receipts,
        limiter: TenantLimits | None = None,
    ) -> None:
        self._authentication = authentication
        self._sink = sink
        self._share = share
        self._limits = limits
        self._clock = clock
        self._answer = answer
        self._limiter = limiter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = headers_of(scope)
        caller = await self._authentication.caller(headers, "events:write", address=address_of(scope))
        if self._limiter is not None and caller.tenants is None:
            refusal = self._limiter.refusal(caller.tenant)
            if refusal is not None:  # before its body is read: it costs next to nothing
                raise _too_fast(refusal)
        most = body_limit(headers, self._limits)
        size = expected_size(headers, most)
        if not self._share.enter(caller.owner, size):
            raise _too_much()
        try:
            body = await read_packed_body(receive, headers, most)
            now = self._clock.now()
            refused: list[RefusedEvent] | None = None
            if self._answer is with_receipts and prefers_leniency(headers) and is_batch(headers, body):
                events, refused = read_each(body, caller=caller, now=now, limits=self._limits)
            else:
                events = read_events(headers, body, caller=caller, now=now, limits=self._limits)
            response = await self._stored(events, headers, refused)
        finally:
            self._share.leave(caller.owner, size)
        await response(scope, receive, send)

    async def _stored(
        self, events: list[Envelope], headers: dict[str, str], refused: list[RefusedEvent] | None
    ) -> Response:
        if self._limiter is None:
            return self._answered(
                await store(self._sink, events, trace_headers(headers), _places(events, refused)), refused
            )
        spent, told = await self._spend(self._limiter, events)
        try:
            receipts = await store(self._sink, events, trace_headers(headers), _places(events, refused))
        except Refused:  # what is not stored costs nothing; what of it is, is recognised when it comes again
            _give_back(self._limiter, spent)
            raise
        response = self._answered(receipts, refused)
        response.raw_headers.extend((name.encode(), value.encode()) for name, value in _limit_headers(told))
        return response

    def _answered(self, receipts: list[Receipt], refused: list[RefusedEvent] | None) -> Response:
        return self._answer(receipts) if refused is None else one_by_one(receipts, refused)

    async def _spend(self, limiter: TenantLimits, events: list[Envelope]) -> tuple[_Spent, Told]:
        """Spend what the events cost each of their tenants, nearly always one: all of it, or none."""
        costs: dict[str, tuple[int, int]] = {}
        for event in events:
            count, size = costs.get(event.tenant, (0, 0))
            costs[event.tenant] = count + 1, size + len(event.body)
        spent: _Spent = []
        told: Told | None = None
        for tenant, (count, size) in costs.items():
            told = await limiter.take(tenant, count, size)
            if not told.verdict.allowed:
                _give_back(limiter, spent)
                raise _too_fast(told, tenant if len(costs) > 1 else "your tenant")
            spent.append((tenant, count, size))
        assert told is not None  # noqa: S101 a request has at least one event
        return spent, told


_Spent = list[tuple[str, int, int]]


def _give_back(limiter: TenantLimits, spent: _Spent) -> None:
    for tenant, count, size in spent:
        limiter.give_back(tenant, count, size)


def _limit_headers(told: Told) -> list[tuple[str, str]]:
    """`RateLimit-*` (draft-ietf-httpapi-ratelimit-headers-03), in the limit's tokens and in seconds."""
    if told.verdict.remaining is None:
        return []
    return [
        ("ratelimit-limit", str(told.limit.limiter.quota.burst)),
        ("ratelimit-remaining", str(told.verdict.remaining)),
        ("ratelimit-reset", str(ceil(told.verdict.reset_seconds))),
    ]


def _too_fast(told: Told, who: str = "your tenant") -> Refused:
    wait = max(1, ceil(told.verdict.reset_seconds))
    return Refused(
        429,
        f"{who} {told.limit.says}; come back in {wait} s",
        reason="rate_limited",
        headers={"retry-after": str(wait), **dict(_limit_headers(told))},
    )


def _too_much() -> Refused:
    return Refused(
        429,
        "your tenant has its share of requests under way here; come back when some are answered",
        reason="too_much_at_once",
        headers={"retry-after": "1", "connection": "close"},
    )


def _places(events: list[Envelope], refused: list[RefusedEvent] | None) -> list[int] | None:
    if refused is None:
        return None
    missing = {one.index for one in refused}
    return [place for place in range(len(events) + len(missing)) if place not in missing]


async def store(
    sink: EventSink, events: list[Envelope], headers: dict[str, str], places: list[int] | None = None
) -> list[Receipt]:
    """Make the events durable.

    Args:
        places: Where each was in the request; None where all of it is here.

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
            extensions={
                "not_stored": [f"[{places[f.index] if places else f.index}]" for f in error.failures[:100]]
            },
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
