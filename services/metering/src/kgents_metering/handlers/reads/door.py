"""OpenMeter's paths: what is asked for, and its answer; who may ask is the gate's to say."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, timedelta
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from kgents_common.clock import Clock
from kgents_common.keyring.reading import SUBJECT
from kgents_common.usage_contract import (
    EVENTS,
    EVENTS_V2,
    GROUP_VALUES,
    METER,
    METERS,
    PARAMETERS,
    QUERY,
    ROUTES,
    SUBJECTS,
)
from kgents_metering.handlers.reads import answers
from kgents_metering.handlers.reads.accept import wants_csv
from kgents_metering.handlers.reads.gate import Gate, Handler, whole_of_several
from kgents_metering.model.query import PARAMETERS as QUERY_PARAMETERS
from kgents_metering.model.query import (
    REPEATABLE,
    QueryError,
    Span,
    body_values,
    parse_query,
    read_span,
)
from kgents_metering.model.query.listing import cursor_of, read_page
from kgents_metering.model.query.parameters import (
    Parameters,
    choice,
    from_query_string,
    moment,
    number,
    one,
)
from kgents_metering.sinks.ledger.meters import MeterInForce
from kgents_metering.sinks.ledger.reads import EventFilter, UsageReads

MAX_LISTED = 100
MAX_METERS = 1000
MAX_PAGE = 1_000_000
SECOND = timedelta(seconds=1)
DEFAULT_SPAN = timedelta(days=1)
METER_ORDERS: Mapping[str, Callable[[MeterInForce], Any]] = {
    "key": lambda found: found.meter.slug,
    "name": lambda found: (found.meter.name or found.meter.slug, found.meter.slug),
    "aggregation": lambda found: (str(found.meter.aggregation), found.meter.slug),
    "createdAt": lambda found: (found.created_at, found.meter.slug),
    "updatedAt": lambda found: (found.updated_at, found.meter.slug),
}


class Reads:
    """The handlers: each gives the answer to a request of a tenant, for as long as it takes to send it."""

    def __init__(self, usage: UsageReads, clock: Clock) -> None:
        self._usage = usage
        self._clock = clock

    async def list_meters(self, request: Request, _: tuple[str, ...]) -> Response:
        """Every meter, or a page of them, as a bare array."""
        values = _values(request, PARAMETERS[METERS], repeatable=(SUBJECT,))
        page, size = number(values, "page", 1, MAX_PAGE), number(values, "pageSize", MAX_METERS, MAX_METERS)
        if one(values, "includeDeleted") not in (None, "false"):
            raise QueryError("includeDeleted: meters that ended are not shown")
        order = METER_ORDERS[choice(values, "orderBy", tuple(METER_ORDERS), "key")]
        is_descending = choice(values, "order", ("ASC", "DESC"), "ASC") == "DESC"
        meters = sorted(await self._usage.meters(), key=order, reverse=is_descending)
        return answers.as_json([answers.meter(meter) for meter in meters[(page - 1) * size : page * size]])

    async def get_meter(self, request: Request, _: tuple[str, ...]) -> Response:
        """One meter by slug or ULID."""
        _values(request, PARAMETERS[METER], repeatable=(SUBJECT,))
        return answers.as_json(answers.meter(await self._meter(request)))

    async def subjects(self, request: Request, tenants: tuple[str, ...]) -> Response:
        """Those of the caller's tenants that used the meter."""
        span = read_span(_values(request, PARAMETERS[SUBJECTS], repeatable=(SUBJECT,)))
        meter = await self._meter(request)
        used = [one for one in tenants if await self._usage.has_usage(meter, one, span)]
        return answers.as_json(used)

    async def group_values(self, request: Request, tenants: tuple[str, ...]) -> Response:
        """The values of one group key, of the last 24 hours unless `from` is given, as OpenMeter has it."""
        span = read_span(_values(request, PARAMETERS[GROUP_VALUES], repeatable=(SUBJECT,)))
        meter = await self._meter(request)
        key = request.path_params["key"]
        if key not in dict(meter.meter.group_by):
            raise QueryError(f"invalid group by: {ascii(key[:100])[1:-1]}", 404)
        if span.start is None:
            span = Span((span.end or self._clock.now().replace(microsecond=0)) - DEFAULT_SPAN, span.end)
        found: set[str] = set()
        for tenant in tenants:
            found.update(await self._usage.group_values(meter, tenant, key, span))
        return answers.as_json(sorted(found))

    async def list_events(self, request: Request, tenants: tuple[str, ...]) -> Response:
        """The tenants' own events, newest first, each with why it could not be metered, if so."""
        values = _values(request, PARAMETERS[EVENTS], repeatable=(SUBJECT,))
        if one(values, "customerId") is not None:
            raise QueryError("customerId: there are no customers here; tenants are subjects")
        limit = number(values, "limit", MAX_LISTED, MAX_LISTED)
        start, end = moment(values, "from"), moment(values, "to")
        if start is not None and end is not None and end < start:
            raise QueryError("to must not be before from")
        stored_end = moment(values, "ingestedAtTo")
        wanted = EventFilter(
            event_id=one(values, "id"),
            start=start,
            # Upstream has whole seconds, and both bounds are part of what is listed.
            end=None if end is None else end + SECOND,
            stored_from=moment(values, "ingestedAtFrom"),
            stored_to=None if stored_end is None else stored_end + SECOND,
            limit=limit,
        )
        # A key of one tenant may name a part of it, as upstream; one of several has named tenants.
        named = values.get(SUBJECT) or ("",)
        asked = [tenant for tenant in tenants if any(part in tenant for part in named)]
        events = await self._usage.events(asked, wanted, self._clock.now())
        return answers.as_json([answers.event(event) for event in events])

    async def page_of_events(self, request: Request, tenants: tuple[str, ...]) -> Response:
        """The tenants' own events in pages, newest first, as OpenMeter's v2 lists them."""
        wanted = read_page(_values(request, PARAMETERS[EVENTS_V2], repeatable=(SUBJECT,)))
        events = await self._usage.page_of_events(tenants, wanted)
        page: dict[str, object] = {"items": [answers.event(event) for event in events]}
        if len(events) == wanted.limit:
            page["nextCursor"] = cursor_of((events[-1].time.astimezone(UTC), events[-1].n))
        return answers.as_json(page)

    @asynccontextmanager
    async def query(self, request: Request, tenants: tuple[str, ...]) -> AsyncIterator[Response]:
        """A meter's values by window and group, as JSON or CSV."""
        if request.method == "POST":
            _values(request, ())
            values: Parameters = body_values(_decoded(request.state.body))
        else:
            values = _values(request, QUERY_PARAMETERS, repeatable=REPEATABLE)
        meter = await self._meter(request)
        query = parse_query(values, meter.meter, tenants)
        async with self._usage.open_query(meter, tenants, query) as found:
            if wants_csv(",".join(request.headers.getlist("accept"))):
                yield await answers.csv_rows(found, query, meter.meter.slug)
            else:
                echoed = {name: values[name][-1] for name in ("from", "to", "windowSize") if values.get(name)}
                yield await answers.json_rows(found, echoed, query)

    async def _meter(self, request: Request) -> MeterInForce:
        found = await self._usage.meter(request.path_params["meter"])
        if found is None:
            raise HTTPException(404, "there is no such meter")
        return found


def routes(usage: UsageReads, gate: Gate, clock: Clock) -> list[BaseRoute]:
    """OpenMeter's paths."""
    reads = Reads(usage, clock)
    handlers: Mapping[str, Handler] = {
        METERS: whole_of_several(reads.list_meters),
        METER: whole_of_several(reads.get_meter),
        SUBJECTS: whole_of_several(reads.subjects),
        GROUP_VALUES: whole_of_several(reads.group_values),
        QUERY: reads.query,
        EVENTS: whole_of_several(reads.list_events),
        EVENTS_V2: whole_of_several(reads.page_of_events),
    }
    return [
        Route(path, gate(handler, is_about_nobody=path in (METERS, METER)), methods=[*ROUTES[path]])
        for path, handler in handlers.items()
    ]


def _values(request: Request, known: Collection[str], *, repeatable: Collection[str] = ()) -> Parameters:
    return from_query_string(request.scope["query_string"], known, repeatable=repeatable)


def _decoded(body: bytes) -> object:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise QueryError("the body must be JSON") from None
