"""The way in: `POST /api/v1/events` and `POST /api/v3/openmeter/events`, and what faults make of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from kgents_devstack.openmeter.counts import CUT, Statistics
from kgents_devstack.openmeter.event import Event, decode
from kgents_devstack.openmeter.faults import (
    Draw,
    ErrorAfter,
    ErrorAfterPartial,
    ErrorBefore,
    Fault,
    Faults,
    PayloadTooLarge,
    RejectOne,
    TooManyRequests,
)
from kgents_devstack.openmeter.problem import Refusal, respond
from kgents_devstack.openmeter.protocol import CutConnection
from kgents_devstack.openmeter.store import EventStore

ACCEPTED = {"v1": 204, "v3": 202}
_PLAIN_REFUSALS = {
    "unauthorized": Refusal(401, "Unauthorized"),
    "forbidden": Refusal(403, "Forbidden"),
    "not_found": Refusal(404, "Not Found"),
}


def now_microseconds() -> int:
    """Unix microseconds."""
    return time.time_ns() // 1000


def answer_before(fault: Fault | None, version: str) -> Response | None:
    """The answer of a fault that fires before a request is looked at; None for another."""
    if fault is None:
        return None
    if fault.name == "connection_reset":
        return CutConnection()
    if fault.name == "hang_short":
        return respond(Refusal(504, "upstream request timeout"), version=version)
    if fault.name in _PLAIN_REFUSALS:
        return respond(_PLAIN_REFUSALS[fault.name], version=version)
    if isinstance(fault.switch, TooManyRequests):
        headers = {"retry-after": str(fault.switch.retry_after_seconds)}
        return respond(Refusal(429, "Too Many Requests"), version=version, headers=headers)
    if isinstance(fault.switch, ErrorBefore):
        return respond(Refusal(fault.switch.status, "the service is not available"), version=version)
    return None


class Ingest:
    """Takes events. Whole requests are validated first, then events are stored one by one."""

    def __init__(self, store: EventStore, faults: Faults, statistics: Statistics) -> None:
        self._store = store
        self._faults = faults
        self.statistics = statistics

    async def take(self, request: Request, version: str) -> Response:
        """Answer an ingest request."""
        statistics = self.statistics
        statistics.requests += 1
        response = await self._answer(request, version)
        statistics.by_status[CUT if isinstance(response, CutConnection) else response.status_code] += 1
        return response

    async def _answer(self, request: Request, version: str) -> Response:
        body = await request.body()
        draw = self._faults.draw("ingest")
        if draw.fault is not None and draw.fault.name == "hang_short":
            await asyncio.sleep(getattr(draw.fault.switch, "seconds", 0.0))
        early = draw.hang is None or draw.hang.stored == "after"
        if draw.hang is not None and early:
            await asyncio.sleep(draw.hang.seconds)
        refused = answer_before(draw.fault, version)
        if refused is not None:
            return refused
        try:
            events = decode(body, request.headers.get("content-type"), version=version)
        except Refusal as refusal:
            self.statistics.rejected += _count(body)
            return respond(refusal, version=version)
        self.statistics.largest_batch = max(self.statistics.largest_batch, len(events))
        if draw.hang is not None and draw.hang.stored == "never":
            await asyncio.sleep(draw.hang.seconds)
            return CutConnection()
        response = self._store_and_answer(events, draw, version)
        if draw.hang is not None and not early:
            await asyncio.sleep(draw.hang.seconds)
        return response

    def _store_and_answer(self, events: Sequence[Event], draw: Draw, version: str) -> Response:
        for fault in draw.looking:
            refusal = _look(fault, events)
            if refusal is not None and self._faults.confirm(fault):
                self.statistics.rejected += len(events)
                return respond(refusal, version=version)
        switch = None if draw.fault is None else draw.fault.switch
        if isinstance(switch, ErrorAfterPartial):
            self._keep(events[: int(len(events) * switch.fraction)])
            return respond(Refusal(switch.status, "failed to ingest event"), version=version)
        if draw.fault is not None and draw.fault.name == "drop_after_204":
            self.statistics.dropped += len(events)
            return Response(status_code=ACCEPTED[version])
        self._keep(events)
        if isinstance(switch, ErrorAfter):
            if switch.close:
                return CutConnection()
            return respond(Refusal(switch.status, "failed to ingest events"), version=version)
        return Response(status_code=ACCEPTED[version])

    def _keep(self, events: Sequence[Event]) -> None:
        self.statistics.took(self._store.add(events, now_microseconds()))


def _look(fault: Fault, events: Sequence[Event]) -> Refusal | None:
    """The refusal of a fault that depends on the events, if these are so."""
    switch = fault.switch
    if isinstance(switch, PayloadTooLarge):
        return Refusal(413, "request body too large") if len(events) > switch.above_events else None
    if isinstance(switch, RejectOne):
        for place, event in enumerate(events):
            if _is_rejected(event, switch):
                return Refusal(400, f"invalid event: event {place} with id {event.id} is rejected")
    return None


def _is_rejected(event: Event, switch: RejectOne) -> bool:
    data = bytes(event.data)
    if switch.id is not None or switch.marker is not None:
        return event.id == switch.id or (switch.marker is not None and switch.marker.encode() in data)
    if b'"poison"' not in data:
        return False
    document = msgspec.json.decode(data)
    return isinstance(document, dict) and document.get("poison") is True


def _count(body: bytes) -> int:
    """How many events a refused request had, as far as one can say."""
    try:
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return 0
    return len(document) if isinstance(document, list) else 1
