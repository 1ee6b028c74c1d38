"""A usage query as OpenMeter's v1 API takes it, parsed and checked; it reads no rows.

Source of the rules: OpenMeter `api/openapi.yaml` (`queryMeter`) and its `openmeter/meter` package: `from` is
inclusive, `to` exclusive, both cut to whole seconds; windows are calendar windows of `windowTimeZone`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kgents_metering.model import zones
from kgents_metering.model.meters import Meter
from kgents_metering.model.query.errors import QueryError
from kgents_metering.model.query.filters import Filter, read_filters
from kgents_metering.model.query.parameters import Parameters, check_known, check_text, moment, one
from kgents_metering.model.query.spans import Span
from kgents_metering.model.windows import Window

MAX_SUBJECTS = 100

FIELDS = frozenset(
    {
        "clientId",
        "from",
        "to",
        "windowSize",
        "windowTimeZone",
        "subject",
        "filterCustomerId",
        "filterGroupBy",
        "advancedMeterGroupByFilters",
        "groupBy",
    }
)
PARAMETERS = FIELDS | {"filterGroupBy[]"}
REPEATABLE = frozenset({"subject", "groupBy", "filterCustomerId"})


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked of one meter, for each tenant by itself.

    Attributes:
        group_by: Keys of the meter, in the order asked for; without `subject`.
        filters: By group key, a tree of OpenMeter's filter operators.
    """

    span: Span = field(default_factory=Span)
    window: Window | None = None
    zone: str = "UTC"
    by_subject: bool = False
    group_by: tuple[str, ...] = ()
    filters: Mapping[str, Filter] = field(default_factory=dict)


def parse_query(values: Parameters, meter: Meter, tenants: tuple[str, ...]) -> Query:
    """A query from its parameters, each with all its values (POST bodies are brought into this form).

    Args:
        tenants: Those that the caller may ask about here.

    Raises:
        QueryError: 400 for a wrong parameter, 403 for another tenant's subject.
    """
    subjects = values.get("subject") or ()
    if len(subjects) > MAX_SUBJECTS:
        raise QueryError(f"subject: at most {MAX_SUBJECTS}")
    for subject in subjects:
        if subject not in tenants:
            raise QueryError("subject: these credentials may ask for their own tenant only", 403)
    if values.get("filterCustomerId"):
        raise QueryError("filterCustomerId: there are no customers here; tenants are subjects")
    keys = dict(meter.group_by)
    group_by: list[str] = []
    for key in _listed(values.get("groupBy") or ()):
        if key == "customer_id":
            raise QueryError("groupBy: customer_id needs filterCustomerId")
        if key != "subject" and key not in keys:
            raise QueryError(f"invalid group by: {ascii(key[:100])[1:-1]}")
        if key not in group_by:
            group_by.append(key)
    return Query(
        span=read_span(values),
        window=_window(one(values, "windowSize")),
        zone=_zone(one(values, "windowTimeZone")),
        by_subject=bool(subjects) or "subject" in group_by,
        group_by=tuple(key for key in group_by if key != "subject"),
        filters=read_filters(values, keys),
    )


def read_span(values: Parameters) -> Span:
    """`from` and `to`.

    Raises:
        QueryError: 400.
    """
    span = Span(moment(values, "from"), moment(values, "to"))
    if span.start is not None and span.end is not None and span.start >= span.end:
        raise QueryError("from must be before to")
    return span


def body_values(body: object) -> dict[str, list[str]]:
    """The parameters of a POST body in the form of a query string's.

    Raises:
        QueryError: It is not an object of the documented fields.
    """
    if not isinstance(body, dict):
        raise QueryError("the body must be a JSON object")
    values: dict[str, list[str]] = {}
    for name, value in body.items():
        check_known(name, FIELDS, "field")
        if value is None:
            continue
        if name == "advancedMeterGroupByFilters":
            values[name] = [json.dumps(_mapping(value, name))]
        elif name == "filterGroupBy":
            for key, wanted in _mapping(value, name).items():
                values[f"filterGroupBy[{check_text(key, name)}]"] = _strings(wanted, name)
        elif name in REPEATABLE:
            values[name] = _strings(value, name)
        elif isinstance(value, str):
            values[name] = [check_text(value, name)]
        else:
            raise QueryError(f"{name}: must be a string")
    return values


def _mapping(value: object, name: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise QueryError(f"{name} must be an object")
    return value


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
    return [check_text(str(item), name) for item in items]
