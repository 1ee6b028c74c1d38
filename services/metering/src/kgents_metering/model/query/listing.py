"""A page of events as OpenMeter's v2 listing is asked for one: filters of its fields, and where it goes on.

Source of the rules: OpenMeter `api/openapi.yaml` (`listEventsV2`, `FilterTime`), `openmeter/meterevent`:
newest first, a cursor of time and row, times of whole seconds.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from kgents_common import rfc3339
from kgents_metering.model.query.errors import QueryError
from kgents_metering.model.query.filters import MAX_DEPTH, Filter, read_texts
from kgents_metering.model.query.parameters import Parameters, number, one

MAX_PAGE = 100
TEXTS = ("id", "source", "subject", "type")
TIMES = ("time", "ingestedAt")
_SECOND = timedelta(seconds=1)
# Upstream has whole seconds: later than one is from the next on.
_BOUNDS = {
    "$gt": ("$gte", _SECOND),
    "$gte": ("$gte", timedelta()),
    "$lt": ("$lt", timedelta()),
    "$lte": ("$lt", _SECOND),
}

Position = tuple[datetime, int]


@dataclass(frozen=True, slots=True)
class EventPage:
    """What is listed.

    Attributes:
        filters: By field (`id`, `source`, `subject`, `type`, `time`, `ingestedAt`), a tree of operators;
            times are datetimes under `$gte` and `$lt`.
        before: Time and number of the last event of the page before.
    """

    limit: int = MAX_PAGE
    filters: Mapping[str, Filter] = field(default_factory=dict)
    before: Position | None = None


def read_page(values: Parameters) -> EventPage:
    """A page from its parameters.

    Raises:
        QueryError: 400.
    """
    filters: dict[str, Filter] = {}
    for name, condition in _filter(one(values, "filter")).items():
        if name == "customerId":
            raise QueryError("filter: customerId: there are no customers here; tenants are subjects")
        if name not in (*TEXTS, *TIMES):
            raise QueryError(f"filter: {name[:100]!a}: there are {', '.join((*TEXTS, *TIMES))}")
        if condition is None:
            continue
        checked = read_texts(condition) if name in TEXTS else _times(condition, 0)
        if checked:
            filters[name] = checked
    cursor = one(values, "cursor")
    before = None if cursor is None else _position(cursor)
    return EventPage(number(values, "limit", MAX_PAGE, MAX_PAGE), filters, before)


def named_in(text: str) -> list[str]:
    """The subjects that a filter names one by one, with `$eq` or `$in`; none where it is no such filter."""
    try:
        subject = _filter(text).get("subject")
    except QueryError:
        return []
    if not isinstance(subject, dict):
        return []
    listed = subject.get("$in")
    names = [subject.get("$eq"), *(listed if isinstance(listed, list) else [])]
    return [name for name in names if isinstance(name, str)]


def cursor_of(at: Position) -> str:
    """A cursor as upstream writes it: base64 of the time and the row."""
    time, n = at
    return base64.b64encode(f"{time.isoformat()},{n}".encode()).decode()


def _position(cursor: str) -> Position:
    try:
        time, _, n = base64.b64decode(cursor, validate=True).decode("ascii").partition(",")
        if not n.isdecimal() or len(n) > 19 or int(n) >= 2**63:
            raise ValueError
        return rfc3339.moment(time), int(n)
    except ValueError:
        raise QueryError("cursor: must be the nextCursor of a page") from None


def _filter(text: str | None) -> dict[str, object]:
    try:
        found = json.loads(text) if text is not None else {}
    except (ValueError, RecursionError):
        raise QueryError("filter: must be JSON") from None
    if not isinstance(found, dict):
        raise QueryError("filter: must be an object")
    return found


def _times(condition: object, depth: int) -> Filter:
    if not isinstance(condition, dict) or depth > MAX_DEPTH:
        raise QueryError(f"a filter must be an object of operators, nested at most {MAX_DEPTH} deep")
    parts: list[Filter] = []
    for operator, value in condition.items():
        if value is None:
            continue
        if operator in ("$and", "$or"):
            if not isinstance(value, list) or not value:
                raise QueryError(f"{operator}: must be a list of filters")
            joined = [_times(part, depth + 1) for part in value]
            if not all(joined):
                raise QueryError(f"{operator}: a filter in it has no operator")
            parts.append({operator: joined})
        elif operator in _BOUNDS and isinstance(value, str):
            bound, later = _BOUNDS[operator]
            parts.append({bound: _second(value, operator) + later})
        else:
            raise QueryError(f"{operator[:100]!a}: is no operator of times, or its value is no time")
    return {"$and": parts} if parts else {}


def _second(text: str, operator: str) -> datetime:
    try:
        found = rfc3339.moment(text).replace(microsecond=0)
        return min(found, datetime.max.replace(tzinfo=found.tzinfo, microsecond=0) - _SECOND)
    except ValueError as error:
        raise QueryError(f"{operator}: {error}") from None
