"""A usage query as OpenMeter's v1 API takes it: parsed, checked, and its windows; it reads no rows.

Source of the rules: OpenMeter `api/openapi.yaml` (`queryMeter`) and its `openmeter/meter` package: `from` is
inclusive, `to` exclusive, both cut to whole seconds; windows are calendar windows of `windowTimeZone`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from kgents_common.errors import PermanentError
from kgents_metering.model import zones
from kgents_metering.model.meters import Meter
from kgents_metering.model.windows import MINUTE, Window

MAX_GROUP_VALUES = 100
MAX_FILTER_DEPTH = 4
COMPARISONS = {
    "$eq": "=",
    "$ne": "<>",
    "$like": "like",
    "$nlike": "not like",
    "$ilike": "ilike",
    "$nilike": "not ilike",
    "$gt": ">",
    "$gte": ">=",
    "$lt": "<",
    "$lte": "<=",
}


class QueryError(PermanentError):
    """A query that cannot be answered; `status` is the HTTP status it deserves."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


Filter = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked of one meter for one tenant.

    Attributes:
        start, end: `from` and `to`, whole seconds, UTC; None where not given.
        group_by: Keys of the meter, in the order asked for; without `subject`.
        filters: By group key, a tree of OpenMeter's filter operators.
    """

    start: datetime | None = None
    end: datetime | None = None
    window: Window | None = None
    zone: str = "UTC"
    by_subject: bool = False
    group_by: tuple[str, ...] = ()
    filters: Mapping[str, Filter] = field(default_factory=dict)


def parse_query(values: Mapping[str, Sequence[str]], meter: Meter, tenant: str) -> Query:
    """A query from its parameters, each with all its values (POST bodies are brought into this form).

    Raises:
        QueryError: 400 for a wrong parameter, 403 for another tenant's subject.
    """

    def one(name: str) -> str | None:
        found = values.get(name) or ()
        return found[-1] if found else None

    start, end = _moment(one("from"), "from"), _moment(one("to"), "to")
    if start is not None and end is not None and start >= end:
        raise QueryError("from must be before to")
    subjects = values.get("subject") or ()
    if len(subjects) > MAX_GROUP_VALUES:
        raise QueryError(f"subject: at most {MAX_GROUP_VALUES}")
    for subject in subjects:
        if subject != tenant:
            raise QueryError("subject: these credentials may ask for their own tenant only", 403)
    if values.get("filterCustomerId"):
        raise QueryError("filterCustomerId: there are no customers here; tenants are subjects")
    keys = dict(meter.group_by)
    group_by: list[str] = []
    for key in _listed(values.get("groupBy") or ()):
        if key == "customer_id":
            raise QueryError("groupBy: customer_id needs filterCustomerId")
        if key != "subject" and key not in keys:
            raise QueryError(f"invalid group by: {key}")
        if key not in group_by:
            group_by.append(key)
    return Query(
        start=start,
        end=end,
        window=_window(one("windowSize")),
        zone=_zone(one("windowTimeZone")),
        by_subject=bool(subjects) or "subject" in group_by,
        group_by=tuple(key for key in group_by if key != "subject"),
        filters=_filters(values, keys),
    )


def body_values(body: object) -> dict[str, list[str]]:
    """The parameters of a POST body in the form of a query string's.

    Raises:
        QueryError: It is not an object of the documented fields.
    """
    if not isinstance(body, dict):
        raise QueryError("the body must be a JSON object")
    values: dict[str, list[str]] = {}
    for name, value in body.items():
        if value is None:
            continue
        if name in ("filterGroupBy", "advancedMeterGroupByFilters"):
            if not isinstance(value, dict):
                raise QueryError(f"{name} must be an object")
            if name == "advancedMeterGroupByFilters":
                values[name] = [json.dumps(value)]
            else:
                for key, wanted in value.items():
                    values[f"filterGroupBy[{key}]"] = _strings(wanted, name)
        elif name in _FIELDS:
            values[name] = _strings(value, name)
        else:
            raise QueryError(f"unknown field {name}")
    return values


_FIELDS = frozenset(
    {
        "clientId",
        "from",
        "to",
        "windowSize",
        "windowTimeZone",
        "subject",
        "filterCustomerId",
        "groupBy",
    }
)


@dataclass(frozen=True, slots=True)
class Span:
    """From `start` (inclusive) to `end` (exclusive); None for open."""

    start: datetime | None
    end: datetime | None


def whole_minutes(query: Query) -> Span:
    """The part of the query's time that whole minutes answer."""
    start, end = query.start, query.end
    if start is not None and start != _floor(start):
        start = _floor(start) + MINUTE
    return Span(start, _floor(end) if end is not None else None)


def edges(query: Query) -> list[tuple[datetime, datetime]]:
    """The parts of minutes at both ends, which only the events themselves answer."""
    whole = whole_minutes(query)
    found: list[tuple[datetime, datetime]] = []
    if query.start is not None and whole.start is not None and query.start < whole.start:
        found.append((query.start, min(whole.start, query.end) if query.end else whole.start))
    if query.end is not None and whole.end is not None and whole.end < query.end:
        start = max(whole.end, query.start) if query.start else whole.end
        if (start, query.end) not in found and not any(s <= start < e for s, e in found):
            found.append((start, query.end))
    return found


def _floor(moment: datetime) -> datetime:
    return moment.replace(second=0, microsecond=0)


def _moment(text: str | None, name: str) -> datetime | None:
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
        if found.tzinfo is None:
            raise ValueError
        return found.astimezone(UTC).replace(microsecond=0)
    except (ValueError, OverflowError):
        raise QueryError(f"{name}: must be an RFC 3339 date and time") from None


def _window(text: str | None) -> Window | None:
    try:
        return Window(text) if text is not None else None
    except ValueError:
        raise QueryError(f"windowSize: must be one of {', '.join(Window)}") from None


def _zone(text: str | None) -> str:
    if not text:
        return "UTC"
    if text not in zones.names():
        raise QueryError(f"windowTimeZone: {text!a} is not a name in the IANA time zone database")
    return text


def _listed(values: Sequence[str]) -> list[str]:
    return [part.strip() for value in values for part in value.split(",") if part.strip()]


def _strings(value: object, name: str) -> list[str]:
    items = value if isinstance(value, list) else [value]
    if not all(isinstance(item, str) for item in items):
        raise QueryError(f"{name}: must be a string or a list of strings")
    return [str(item) for item in items]


def _filters(values: Mapping[str, Sequence[str]], keys: Mapping[str, str]) -> dict[str, Filter]:
    found: dict[str, Filter] = {}
    for name, wanted in values.items():
        if name.startswith("filterGroupBy[") and name.endswith("]"):
            found[name[len("filterGroupBy[") : -1]] = {"$in": list(wanted)}
    advanced = values.get("advancedMeterGroupByFilters")
    if advanced:
        if found:
            raise QueryError("filterGroupBy and advancedMeterGroupByFilters exclude each other")
        try:
            found = json.loads(advanced[-1])
        except (ValueError, RecursionError):
            raise QueryError("advancedMeterGroupByFilters: must be JSON") from None
        if not isinstance(found, dict):
            raise QueryError("advancedMeterGroupByFilters: must be an object")
    for key, condition in found.items():
        if key not in keys:
            raise QueryError(f"invalid group by: {key}")
        _check_filter(condition, 0)
    return found


def _check_filter(condition: object, depth: int) -> None:
    if not isinstance(condition, dict) or not condition or depth > MAX_FILTER_DEPTH:
        raise QueryError("a filter must be an object of operators, nested at most four deep")
    for operator, value in condition.items():
        if operator in ("$and", "$or"):
            if not isinstance(value, list) or not value:
                raise QueryError(f"{operator}: must be a list of filters")
            for part in value:
                _check_filter(part, depth + 1)
        elif operator in ("$in", "$nin"):
            if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                raise QueryError(f"{operator}: must be a list of strings")
            if len(value) > MAX_GROUP_VALUES:
                raise QueryError(f"{operator}: at most {MAX_GROUP_VALUES} values")
        elif operator not in COMPARISONS or not isinstance(value, str):
            raise QueryError(f"{operator}: is no operator of a filter, or its value is no string")
