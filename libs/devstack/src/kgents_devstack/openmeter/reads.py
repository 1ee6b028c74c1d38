"""The ways out: `/api/v1/meters`, their queries, and the listings of events; only meters are changed."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response

from kgents_devstack.openmeter import listing
from kgents_devstack.openmeter.clocktext import parse
from kgents_devstack.openmeter.filters import text_filter
from kgents_devstack.openmeter.meters import Meter, Meters
from kgents_devstack.openmeter.problem import Refusal
from kgents_devstack.openmeter.query import UTC_ZONE, Query, Row, evaluate, result
from kgents_devstack.openmeter.store import EventStore
from kgents_devstack.openmeter.windows import WINDOW_SIZES

MAX_SUBJECTS = 100


def as_json(document: object, status: int = 200) -> Response:
    """A JSON answer."""
    return Response(msgspec.json.encode(document), status, media_type="application/json")


def now() -> datetime:
    """The moment, in UTC."""
    return datetime.now(UTC)


class Reads:
    """Answers about meters and events.

    Args:
        exact: Sum without rounding (`aggregation.enableDecimalPrecision`); else in float64.
    """

    def __init__(self, store: EventStore, meters: Meters, *, exact: bool) -> None:
        self._store = store
        self._meters = meters
        self._exact = exact

    async def meters(self, request: Request) -> Response:
        """`GET|POST /api/v1/meters`."""
        if request.method == "POST":
            return as_json(self._meters.create(await _document(request), now()).document(), 201)
        deleted = request.query_params.get("includeDeleted") == "true"
        return as_json([meter.document() for meter in self._meters.listed(deleted=deleted)])

    async def meter(self, request: Request) -> Response:
        """`GET|PUT|DELETE /api/v1/meters/{idOrSlug}`."""
        name = request.path_params["meter"]
        if request.method == "PUT":
            return as_json(self._meters.update(name, await _document(request), now()).document())
        if request.method == "DELETE":
            self._meters.delete(name, now())
            return Response(status_code=204)
        return as_json(self._meters.get(name).document())

    async def query(self, request: Request) -> Response:
        """`GET|POST /api/v1/meters/{idOrSlug}/query`, JSON or CSV."""
        meter = self._meters.get(request.path_params["meter"])
        asked = (
            _from_body(await _document(request))
            if request.method == "POST"
            else _from_query(request.query_params)
        )
        query = make_query(meter, asked)
        events = self._store.rows_of(meter.event_type, query.subjects)
        rows = await run_in_threadpool(lambda: evaluate(meter, query, events, exact=self._exact))
        if request.headers.get("accept", "").startswith("text/csv"):
            headers = {"content-disposition": f'attachment; filename="{meter.slug}.csv"'}
            return Response(_csv(query, rows), headers=headers, media_type="text/csv")
        return as_json(result(query, rows))

    async def subjects(self, request: Request) -> Response:
        """`GET /api/v1/meters/{idOrSlug}/subjects`."""
        meter = self._meters.get(request.path_params["meter"])
        query = Query(*_period(request.query_params), group_by=("subject",))
        events = self._store.rows_of(meter.event_type)
        rows = await run_in_threadpool(lambda: evaluate(meter, query, events))
        return as_json(sorted({row.subject for row in rows if row.subject is not None}))

    async def group_values(self, request: Request) -> Response:
        """`GET /api/v1/meters/{idOrSlug}/group-by/{key}/values`; without `from`, of the last 24 hours."""
        meter, key = self._meters.get(request.path_params["meter"]), request.path_params["key"]
        if key not in meter.group_by:
            raise Refusal(404, f"not found error: meter {meter.slug} has no group by {key}")
        start, end = _period(request.query_params)
        start = start or now().replace(microsecond=0) - listing.LOOK_BACK / 32
        query = Query(start, end, group_by=(key,))
        events = self._store.rows_of(meter.event_type)
        rows = await run_in_threadpool(lambda: evaluate(meter, query, events))
        return as_json(sorted({row.groups[key] for row in rows}))

    async def events_v1(self, request: Request) -> Response:
        """`GET /api/v1/events`."""
        events = listing.listed_v1(self._store, request.query_params, now())
        return as_json([listing.document(event, self._meters.listed()) for event in events])

    async def events_v2(self, request: Request) -> Response:
        """`GET /api/v2/events`."""
        events, cursor = listing.listed_v2(self._store, request.query_params)
        items = [listing.document(event, self._meters.listed()) for event in events]
        return as_json({"items": items} | ({"nextCursor": cursor} if cursor else {}))

    async def events_v3(self, request: Request) -> Response:
        """`GET /api/v3/openmeter/events`."""
        events, cursor, size = listing.listed_v3(self._store, request.query_params.multi_items())
        data = [listing.document_v3(event, self._meters.listed()) for event in events]
        page = {"size": size, "previous": None, "next": cursor}
        return as_json({"data": data, "meta": {"page": page}})


def make_query(meter: Meter, asked: Mapping[str, Any]) -> Query:
    """A query as it was asked, checked against its meter.

    Args:
        asked: By the names of `MeterQueryRequest`; `subject`, `groupBy` lists, `filterGroupBy` lists by key.

    Raises:
        Refusal: 400.
    """
    start, end = _period(asked)
    size = asked.get("windowSize")
    if size is not None and size not in WINDOW_SIZES:
        raise Refusal(
            400, f'parameter "windowSize" in query has an error: value is not one of {WINDOW_SIZES}'
        )
    subjects = _strings(asked, "subject")
    if subjects is not None and len(subjects) > MAX_SUBJECTS:
        raise Refusal(400, f"subject: maximum number of items is {MAX_SUBJECTS}")
    if "customer_id" in (_strings(asked, "groupBy") or ()) and not asked.get("filterCustomerId"):
        raise Refusal(400, "validation error: customer filter is required with customer_id group by")
    if asked.get("filterCustomerId"):
        raise Refusal(400, "validation error: customers not found")
    group_by = list(dict.fromkeys(_strings(asked, "groupBy") or ()))
    for key in group_by:
        if key != "subject" and key not in meter.group_by:
            raise Refusal(400, f"validation error: invalid group by: {key}")
    return Query(
        start,
        end,
        size,
        _zone(asked.get("windowTimeZone")),
        subjects or None,
        group_by,
        _filters(meter, asked),
    )


def _filters(meter: Meter, asked: Mapping[str, Any]) -> dict[str, list[Callable[[str], bool]]]:
    plain, advanced = asked.get("filterGroupBy") or {}, asked.get("advancedMeterGroupByFilters") or {}
    if plain and advanced:
        raise Refusal(
            400, "validation error: filterGroupBy and advancedMeterGroupByFilters exclude each other"
        )
    if not isinstance(plain, dict) or not isinstance(advanced, dict):
        raise Refusal(400, "validation error: group by filters must be an object")
    found: dict[str, list[Callable[[str], bool]]] = {}
    for key, values in plain.items():
        found[key] = [text_filter({"$in": values}, f"filterGroupBy[{key}]")]
    for key, condition in advanced.items():
        found[key] = [text_filter(condition, f"advancedMeterGroupByFilters[{key}]", depth=8)]
    for key in found:
        if key not in meter.group_by:
            raise Refusal(400, f"validation error: invalid group by filter: {key}")
    return found


def _period(asked: Mapping[str, Any]) -> tuple[datetime | None, datetime | None]:
    bounds: list[datetime | None] = []
    for name in ("from", "to"):
        text = asked.get(name)
        try:
            bounds.append(None if text is None else parse(str(text)))
        except ValueError as error:
            raise Refusal(400, f"invalid param format {name}: {error}") from None
    start, end = bounds
    if start is not None and end is not None:
        if start == end:
            raise Refusal(400, "validation error: from and to cannot be equal")
        if start > end:
            raise Refusal(400, "validation error: from must be before to")
    return start, end


def _zone(name: object) -> ZoneInfo:
    if name is None:
        return UTC_ZONE
    try:
        return ZoneInfo(str(name))
    except (OSError, ValueError, KeyError):  # ZoneInfoNotFoundError is a KeyError
        raise Refusal(400, f"validation error: invalid time zone: unknown time zone {name}") from None


def _strings(asked: Mapping[str, Any], name: str) -> list[str] | None:
    value = asked.get(name)
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise Refusal(400, f"{name}: value must be an array of strings")
    return value


def _from_query(given: QueryParams) -> dict[str, Any]:
    asked: dict[str, Any] = {
        name: given[name] for name in ("from", "to", "windowSize", "windowTimeZone") if name in given
    }
    for name in ("subject", "groupBy", "filterCustomerId"):
        if name in given:
            asked[name] = given.getlist(name)
    filters = {
        name.removeprefix("filterGroupBy[").removesuffix("]"): [value]
        for name, value in given.multi_items()
        if name.startswith("filterGroupBy[") and name.endswith("]")
    }
    if filters:
        asked["filterGroupBy"] = filters
    if "advancedMeterGroupByFilters" in given:
        try:
            asked["advancedMeterGroupByFilters"] = msgspec.json.decode(given["advancedMeterGroupByFilters"])
        except msgspec.DecodeError as error:
            raise Refusal(400, f"invalid param format advancedMeterGroupByFilters: {error}") from None
    return asked


def _from_body(document: object) -> dict[str, Any]:
    if not isinstance(document, dict):
        raise Refusal(400, "request body has an error: value must be an object", by_schema=True)
    return document


async def _document(request: Request) -> object:
    try:
        return msgspec.json.decode(await request.body())
    except msgspec.DecodeError as error:
        reason = f"request body has an error: failed to decode request body: {error}"
        raise Refusal(400, reason, by_schema=True) from None


def _csv(query: Query, rows: Sequence[Row]) -> str:
    keys = [key for key in query.group_by if key != "subject"]
    by_subject = query.subjects is not None or "subject" in query.group_by
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["window_start", "window_end", *(["subject"] if by_subject else []), *keys, "value"])
    for row in rows:
        subject = [row.subject] if by_subject else []
        writer.writerow([row.start, row.end, *subject, *(row.groups[key] for key in keys), f"{row.value:f}"])
    return text.getvalue()
