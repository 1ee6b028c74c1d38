"""OpenMeter's paths: what is asked for, and its answer; who may ask is the gate's to say."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from kgents_common.clock import Clock
from kgents_metering.handlers.reads import answers
from kgents_metering.handlers.reads.gate import Gate, Handler, whole
from kgents_metering.model.query import Query, QueryError, Span, body_values, parse_query
from kgents_metering.sinks.ledger.meters import MeterInForce
from kgents_metering.sinks.ledger.reads import EventFilter, UsageReads

MAX_LISTED = 100
QUERY = "/api/v1/meters/{meter}/query"


class Reads:
    """The handlers: each gives the answer to a request of a tenant, for as long as it takes to send it."""

    def __init__(self, usage: UsageReads, clock: Clock) -> None:
        self._usage = usage
        self._clock = clock

    async def list_meters(self, _: Request, __: str) -> Response:
        """Every meter, as a bare array."""
        return answers.as_json([answers.meter(meter) for meter in await self._usage.meters()])

    async def get_meter(self, request: Request, _: str) -> Response:
        """One meter by slug or ULID."""
        return answers.as_json(answers.meter(await self._meter(request)))

    async def subjects(self, request: Request, tenant: str) -> Response:
        """The caller's tenant, where it used the meter."""
        meter = await self._meter(request)
        span = _span(parse_query(_values(request, ("from", "to")), meter.meter, tenant))
        return answers.as_json([tenant] if await self._usage.has_usage(meter, tenant, span) else [])

    async def group_values(self, request: Request, tenant: str) -> Response:
        """The values of one group key."""
        meter = await self._meter(request)
        key = request.path_params["key"]
        if key not in dict(meter.meter.group_by):
            raise QueryError(f"invalid group by: {key}", 404)
        span = _span(parse_query(_values(request, ("from", "to")), meter.meter, tenant))
        return answers.as_json(await self._usage.group_values(meter, tenant, key, span))

    async def list_events(self, request: Request, tenant: str) -> Response:
        """The tenant's own events, newest first, each with why it could not be metered, if so."""
        values = request.query_params
        subject = values.get("subject")
        if subject is not None and subject not in tenant:
            return answers.as_json([])
        limit = values.get("limit", str(MAX_LISTED))
        if not limit.isdecimal() or not 1 <= int(limit) <= MAX_LISTED:
            raise QueryError(f"limit: must be 1 to {MAX_LISTED}")
        wanted = EventFilter(
            event_id=values.get("id"),
            start=_moment(values.get("from"), "from"),
            end=_moment(values.get("to"), "to"),
            stored_from=_moment(values.get("ingestedAtFrom"), "ingestedAtFrom"),
            stored_to=_moment(values.get("ingestedAtTo"), "ingestedAtTo"),
            limit=int(limit),
        )
        events = await self._usage.events(tenant, wanted, self._clock.now())
        return answers.as_json([answers.event(event) for event in events])

    @asynccontextmanager
    async def query(self, request: Request, tenant: str) -> AsyncIterator[Response]:
        """A meter's values by window and group, as JSON or CSV."""
        meter = await self._meter(request)
        if request.method == "POST":
            values: Mapping[str, Sequence[str]] = body_values(_decoded(request.state.body))
        else:
            values = _values(request)
        query = parse_query(values, meter.meter, tenant)
        async with self._usage.open_query(meter, tenant, query) as found:
            if "text/csv" in request.headers.get("accept", ""):
                yield answers.csv_rows(found, query, tenant)
            else:
                echoed = {name: values[name][-1] for name in ("from", "to", "windowSize") if values.get(name)}
                yield answers.json_rows(found, echoed, query, tenant)

    async def _meter(self, request: Request) -> MeterInForce:
        found = await self._usage.meter(request.path_params["meter"])
        if found is None:
            raise HTTPException(404, "there is no such meter")
        return found


def routes(usage: UsageReads, gate: Gate, clock: Clock) -> list[BaseRoute]:
    """OpenMeter's paths."""
    reads = Reads(usage, clock)
    paths: Mapping[str, Handler] = {
        "/api/v1/meters": whole(reads.list_meters),
        "/api/v1/meters/{meter}": whole(reads.get_meter),
        "/api/v1/meters/{meter}/subjects": whole(reads.subjects),
        "/api/v1/meters/{meter}/group-by/{key}/values": whole(reads.group_values),
        QUERY: reads.query,
        "/api/v1/events": whole(reads.list_events),
    }
    methods = {QUERY: ["GET", "POST"]}
    return [Route(path, gate(handler), methods=methods.get(path, ["GET"])) for path, handler in paths.items()]


def _values(request: Request, only: Sequence[str] = ()) -> dict[str, list[str]]:
    names = only or request.query_params.keys()
    return {name: request.query_params.getlist(name) for name in names if name in request.query_params}


def _decoded(body: bytes) -> object:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise QueryError("the body must be JSON") from None


def _moment(text: str | None, name: str) -> datetime | None:
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise QueryError(f"{name}: must be an RFC 3339 date and time") from None
    if found.tzinfo is None:
        raise QueryError(f"{name}: must have a zone")
    return found


def _span(query: Query) -> Span:
    return Span(query.start, query.end)
