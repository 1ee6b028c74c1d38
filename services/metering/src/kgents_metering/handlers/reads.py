"""The way in for questions: OpenMeter's v1 meters, query and events API, for the caller's tenant alone."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, Protocol

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from kgents_common.clock import Clock
from kgents_common.errors import TransientError
from kgents_common.keyring import KeyRecord, presented
from kgents_common.problems import problem
from kgents_metering.model.measure import as_text
from kgents_metering.model.query import Query, QueryError, Span, body_values, parse_query
from kgents_metering.sinks.ledger.meters import MeterInForce
from kgents_metering.sinks.ledger.reads import EventFilter, ListedEvent, Row, UsageReads

SCOPE = "usage:read"
MAX_BODY_BYTES = 64 * 1024
MAX_LISTED = 100

_ENCODER = msgspec.json.Encoder(decimal_format="number")


class FindsKeys(Protocol):
    """The keyring, as this door needs it."""

    def find(self, key: str) -> KeyRecord | None:
        """The record of a presented key."""


class Reads:
    """The handlers."""

    def __init__(self, usage: UsageReads, keyring: FindsKeys, clock: Clock) -> None:
        self._usage = usage
        self._keyring = keyring
        self._clock = clock

    async def list_meters(self, request: Request) -> Response:
        """Every meter, as a bare array."""
        self._tenant(request)
        return _json([_meter(meter) for meter in await self._usage.meters()])

    async def get_meter(self, request: Request) -> Response:
        """One meter by slug or ULID."""
        self._tenant(request)
        return _json(_meter(await self._meter(request)))

    async def subjects(self, request: Request) -> Response:
        """The caller's tenant, where it used the meter."""
        tenant = self._tenant(request)
        meter = await self._meter(request)
        span = _span(parse_query(_values(request, ("from", "to")), meter.meter, tenant))
        return _json([tenant] if await self._usage.has_usage(meter, tenant, span) else [])

    async def group_values(self, request: Request) -> Response:
        """The values of one group key."""
        tenant = self._tenant(request)
        meter = await self._meter(request)
        key = request.path_params["key"]
        if key not in dict(meter.meter.group_by):
            raise QueryError(f"invalid group by: {key}", 404)
        span = _span(parse_query(_values(request, ("from", "to")), meter.meter, tenant))
        return _json(await self._usage.group_values(meter, tenant, key, span))

    async def query(self, request: Request) -> Response:
        """A meter's values by window and group, as JSON or CSV."""
        tenant = self._tenant(request)
        meter = await self._meter(request)
        if request.method == "POST":
            values: Mapping[str, Sequence[str]] = body_values(await _json_body(request))
        else:
            values = _values(request)
        query = parse_query(values, meter.meter, tenant)
        rows = await self._usage.query(meter, tenant, query)
        if "text/csv" in request.headers.get("accept", ""):
            return _csv(rows, query, tenant)
        answer: dict[str, Any] = {"data": [_row(row, query, tenant) for row in rows]}
        for name in ("from", "to", "windowSize"):
            if values.get(name):
                answer[name] = values[name][-1]
        return _json(answer)

    async def list_events(self, request: Request) -> Response:
        """The tenant's own events, newest first, each with why it could not be metered, if so."""
        tenant = self._tenant(request)
        values = request.query_params
        subject = values.get("subject")
        if subject is not None and subject not in tenant:
            return _json([])
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
        return _json([_event(event) for event in events])

    def _tenant(self, request: Request) -> str:
        record = self._keyring.find(presented(request.headers))
        if record is None:
            raise HTTPException(401, "these credentials are not known", {"www-authenticate": "Bearer"})
        if SCOPE not in record.scopes:
            raise HTTPException(403, f"these credentials lack the scope {SCOPE}")
        return record.tenant

    async def _meter(self, request: Request) -> MeterInForce:
        found = await self._usage.meter(request.path_params["meter"])
        if found is None:
            raise HTTPException(404, "there is no such meter")
        return found


def routes(usage: UsageReads, keyring: FindsKeys, clock: Clock) -> list[BaseRoute]:
    """OpenMeter's paths."""
    reads = Reads(usage, keyring, clock)
    return [
        Route("/api/v1/meters", reads.list_meters),
        Route("/api/v1/meters/{meter}", reads.get_meter),
        Route("/api/v1/meters/{meter}/subjects", reads.subjects),
        Route("/api/v1/meters/{meter}/group-by/{key}/values", reads.group_values),
        Route("/api/v1/meters/{meter}/query", reads.query, methods=["GET", "POST"]),
        Route("/api/v1/events", reads.list_events),
    ]


async def _answer_problem(_: Request, error: Exception) -> Response:
    if isinstance(error, QueryError):
        return problem(error.status, str(error))
    if isinstance(error, HTTPException):
        return problem(error.status_code, error.detail, headers=error.headers)
    return problem(503, str(error), headers={"retry-after": "2"})


EXCEPTION_HANDLERS = {
    QueryError: _answer_problem,
    HTTPException: _answer_problem,
    TransientError: _answer_problem,
}


def _values(request: Request, only: Sequence[str] = ()) -> dict[str, list[str]]:
    names = only or request.query_params.keys()
    return {name: request.query_params.getlist(name) for name in names if name in request.query_params}


async def _json_body(request: Request) -> object:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise HTTPException(413, f"the body must be at most {MAX_BODY_BYTES} bytes")
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


def _json(value: object) -> Response:
    return Response(_ENCODER.encode(value), media_type="application/json")


def _meter(found: MeterInForce) -> dict[str, object]:
    return {
        "id": found.ulid,
        **found.meter.definition(),
        "createdAt": found.created_at,
        "updatedAt": found.updated_at,
    }


def _number(value: Decimal) -> Decimal:
    """The same number without trailing zeros; every digit of it stays."""
    return Decimal(as_text(value))


def _row(row: Row, query: Query, tenant: str) -> dict[str, object]:
    return {
        "value": _number(row.value),
        "windowStart": row.start,
        "windowEnd": row.end,
        "subject": tenant if query.by_subject else None,
        "groupBy": row.groups,
    }


def _csv(rows: Sequence[Row], query: Query, tenant: str) -> Response:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    subject = ["subject"] if query.by_subject else []
    writer.writerow(["window_start", "window_end", *subject, *query.group_by, "value"])
    for row in rows:
        writer.writerow(
            [
                f"{row.start:%Y-%m-%dT%H:%M:%SZ}",
                f"{row.end:%Y-%m-%dT%H:%M:%SZ}",
                *([tenant] if query.by_subject else []),
                *(row.groups[key] for key in query.group_by),
                f"{row.value:f}",
            ]
        )
    return Response(
        text.getvalue(),
        media_type="text/csv",
        headers={"content-disposition": 'attachment; filename="usage.csv"'},
    )


def _event(event: ListedEvent) -> dict[str, object]:
    found: dict[str, object] = {
        "event": {
            "id": event.id,
            "source": event.source,
            "specversion": "1.0",
            "type": event.type,
            "subject": event.subject,
            "time": event.time,
            "data": msgspec.Raw(event.data.encode()),
        },
        "ingestedAt": event.stored_at,
        "storedAt": event.stored_at,
    }
    if event.invalid is not None:
        found["validationError"] = event.invalid
    return found
