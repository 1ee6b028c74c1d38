"""The stand-in put together: routes, authentication, faults at reads, the control plane; no rule is here."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable
from http import HTTPStatus

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kgents_devstack.openmeter import faults as switches
from kgents_devstack.openmeter.counts import Statistics
from kgents_devstack.openmeter.faults import Faults, FaultSet
from kgents_devstack.openmeter.ingest import Ingest, answer_before
from kgents_devstack.openmeter.meters import Meters
from kgents_devstack.openmeter.problem import Refusal, respond
from kgents_devstack.openmeter.protocol import CutConnection
from kgents_devstack.openmeter.reads import Reads, as_json
from kgents_devstack.openmeter.store import EventStore

LOOPBACK = frozenset({"127.0.0.1", "::1"})
CONTROL_PAGE = 10_000

_Endpoint = Callable[[Request], Awaitable[Response]]


def make_app(store: EventStore, meters: Meters, *, token: str | None, exact: bool = True) -> Starlette:
    """The application.

    Args:
        token: What callers must present as `Authorization: Bearer`; None asks for nothing (self-hosted).
        exact: Sum without rounding; else in float64.
    """
    faults = Faults()
    ingest = Ingest(store, faults, Statistics())
    reads = Reads(store, meters, exact=exact)
    control = Control(store, faults, ingest)
    gate = Gate(token, faults, ingest)

    async def events_v1(request: Request) -> Response:
        return await (ingest.take(request, "v1") if request.method == "POST" else reads.events_v1(request))

    async def events_v3(request: Request) -> Response:
        return await (ingest.take(request, "v3") if request.method == "POST" else reads.events_v3(request))

    meter = "/api/v1/meters/{meter}"
    return Starlette(
        routes=[
            Route("/healthz", _healthy),
            Route("/api/v1/events", gate(events_v1), methods=["GET", "POST"]),
            Route("/api/v2/events", gate(reads.events_v2)),
            Route("/api/v3/openmeter/events", gate(events_v3), methods=["GET", "POST"]),
            Route("/api/v1/meters", gate(reads.meters), methods=["GET", "POST"]),
            Route(meter, gate(reads.meter), methods=["GET", "PUT", "DELETE"]),
            Route(f"{meter}/query", gate(reads.query), methods=["GET", "POST"]),
            Route(f"{meter}/subjects", gate(reads.subjects)),
            Route(f"{meter}/group-by/{{key}}/values", gate(reads.group_values)),
            Route("/_control/faults", control.guard(control.faults), methods=["GET", "PUT", "DELETE"]),
            Route("/_control/stats", control.guard(control.stats)),
            Route("/_control/events", control.guard(control.events), methods=["GET", "DELETE"]),
        ],
        exception_handlers={HTTPException: _framework_refusal},
    )


class Gate:
    """What every request of the API passes: the token, then the faults of reads."""

    def __init__(self, token: str | None, faults: Faults, ingest: Ingest) -> None:
        self._expected = None if token is None else f"Bearer {token}".encode()
        self._faults = faults
        self._ingest = ingest

    def __call__(self, endpoint: _Endpoint) -> _Endpoint:
        """The endpoint behind the gate."""

        async def guarded(request: Request) -> Response:
            version = "v3" if request.url.path.startswith("/api/v3/") else "v1"
            is_ingest = request.method == "POST" and request.url.path.endswith("/events")
            statistics = self._ingest.statistics
            if not self._may_pass(request):
                if is_ingest:
                    statistics.requests += 1
                    statistics.by_status[HTTPStatus.UNAUTHORIZED] += 1
                return respond(Refusal(401, "Unauthorized"), version=version)
            if not is_ingest:
                statistics.reads += 1
                refused = await self._fault(version)
                if refused is not None:
                    return refused
            try:
                return await endpoint(request)
            except Refusal as refusal:
                return respond(refusal, version=version)

        return guarded

    def _may_pass(self, request: Request) -> bool:
        sent = request.headers.get("authorization", "").encode()
        return self._expected is None or hmac.compare_digest(sent, self._expected)

    async def _fault(self, version: str) -> Response | None:
        draw = self._faults.draw("reads")
        if draw.hang is not None:
            await asyncio.sleep(draw.hang.seconds)
            if draw.hang.stored == "never":
                return CutConnection()
        if draw.fault is not None and draw.fault.name == "error_after_partial":  # drawn by fail_rate
            return respond(Refusal(500, ""), version=version)
        return answer_before(draw.fault, version)


class Control:
    """`/_control`: what OpenMeter does not have; for loopback alone, and it meets no faults."""

    def __init__(self, store: EventStore, faults: Faults, ingest: Ingest) -> None:
        self._store = store
        self._faults = faults
        self._ingest = ingest

    def guard(self, endpoint: _Endpoint) -> _Endpoint:
        """The endpoint for callers on this machine."""

        async def guarded(request: Request) -> Response:
            if request.client is None or request.client.host not in LOOPBACK:
                return respond(Refusal(403, "for loopback alone"))
            try:
                return await endpoint(request)
            except Refusal as refusal:
                return respond(refusal)

        return guarded

    async def faults(self, request: Request) -> Response:
        """GET the switches, PUT others in their place, DELETE them."""
        if request.method == "DELETE":
            self._faults.set(FaultSet())
        elif request.method == "PUT":
            try:
                self._faults.set(switches.parse(msgspec.json.decode(await request.body())))
            except (ValueError, msgspec.DecodeError) as error:
                raise Refusal(400, str(error)) from None
        return as_json(self._faults.switches)

    async def stats(self, _request: Request) -> Response:
        """GET what was counted."""
        return as_json(self._ingest.statistics.document(self._store, self._faults.fired))

    async def events(self, request: Request) -> Response:
        """GET stored events as they came, by exact `source` and `id`, a page `after` a row; DELETE all."""
        if request.method == "DELETE":
            self._ingest.statistics = Statistics()
            self._faults.fired.clear()
            return as_json({"deleted": self._store.clear()})
        asked = request.query_params
        after = asked.get("after", "0")
        if not after.isdecimal():
            raise Refusal(400, "after: must be a row")
        source, event_id = asked.get("source"), asked.get("id")
        if event_id is not None:
            rows = self._store.rows_with_ids(frozenset([event_id]))
            last = len(self._store)
        else:
            last = min(int(after) + CONTROL_PAGE, len(self._store))
            rows = list(range(int(after), last))
        found = [self._store.event(row) for row in rows]
        events = [
            {
                "id": event.id,
                "source": event.source,
                "type": event.type,
                "subject": event.subject,
                "time": event.time,
                "ingested_at": event.ingested_at / 1_000_000,
                "data": msgspec.Raw(event.data),
            }
            for event in found
            if source is None or event.source == source
        ]
        return as_json({"events": events, "next": last if last < len(self._store) else None})


async def _healthy(_request: Request) -> Response:
    return as_json({"status": "ok"})


async def _framework_refusal(_request: Request, error: Exception) -> Response:
    """No such path, or no such method, as a problem document too."""
    status = error.status_code if isinstance(error, HTTPException) else HTTPStatus.INTERNAL_SERVER_ERROR
    return respond(Refusal(status, ""))
