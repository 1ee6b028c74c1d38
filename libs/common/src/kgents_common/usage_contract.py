"""The usage API's contract: what metering's reads answer and the door passes on; nothing is answered here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kgents_common.problems import MEDIA_TYPE

METERS = "/api/v1/meters"
METER = "/api/v1/meters/{meter}"
SUBJECTS = "/api/v1/meters/{meter}/subjects"
GROUP_VALUES = "/api/v1/meters/{meter}/group-by/{key}/values"
QUERY = "/api/v1/meters/{meter}/query"
EVENTS = "/api/v1/events"
EVENTS_V2 = "/api/v2/events"
CONFLICTS = "/v1/conflicts"
CONFLICT = "/v1/conflicts/{id}"
BAD_EVENTS = "/v1/bad-events"

# Path to the methods it takes.
ROUTES: Mapping[str, Sequence[str]] = {
    METERS: ("GET",),
    METER: ("GET",),
    SUBJECTS: ("GET",),
    GROUP_VALUES: ("GET",),
    QUERY: ("GET", "POST"),
    EVENTS: ("GET",),
    EVENTS_V2: ("GET",),
    CONFLICTS: ("GET",),
    CONFLICT: ("GET",),
    BAD_EVENTS: ("GET",),
}

# Name to schema and description.
Described = Mapping[str, tuple[Mapping[str, Any], str]]

_JSON = "application/json"
_SECURITY: list[dict[str, list[str]]] = [{"bearer": []}, {"key": []}]
_MOMENT = {"type": "string", "format": "date-time"}
_TEXT = {"type": "string"}
_TEXTS = {"type": "array", "items": _TEXT}
_REFUSALS = {
    "400": "A parameter is not known, or its value is not one.",
    "401": "No credentials, or unknown ones.",
    "403": "The credentials lack the scope usage:read, or the subject is another tenant's.",
    "422": "The answer would be too large or take too long; the detail says how to narrow the question.",
    "429": "Too many reads of this tenant are under way.",
    "503": "The ledger cannot be asked now: come back after Retry-After.",
}
_FILTERS = {
    "type": "object",
    "description": 'By group key, operators: {"model": {"$in": ["a", "b"]}}',
    "additionalProperties": {"type": "object"},
}
_SPAN: Described = {"from": (_MOMENT, "From when, included"), "to": (_MOMENT, "Until when, excluded")}
_QUERY: Described = {
    **_SPAN,
    "windowSize": ({"enum": ["MINUTE", "HOUR", "DAY", "MONTH"]}, "A value for each window"),
    "windowTimeZone": (_TEXT, "Whose calendar: a name of the IANA time zone database; UTC by default"),
    "subject": (_TEXTS, "Your tenant, or those of a key of several; groups by it, too"),
    "groupBy": (_TEXTS, "Group keys of the meter, or subject"),
    "filterGroupBy": (
        {"type": "object", "additionalProperties": _TEXT},
        "Only groups with this value: filterGroupBy[model]=a",
    ),
    "advancedMeterGroupByFilters": (_FILTERS, "Only groups that these operators let through"),
    "clientId": (_TEXT, "Taken and not used"),
    "filterCustomerId": (_TEXTS, "There are no customers: refused"),
}
_LISTED: Described = {
    "id": (_TEXT, "A part of the id"),
    "subject": (_TEXTS, "A part of your tenant's name; with a key of several, those you ask about"),
    "from": (_MOMENT, "Happened since, included"),
    "to": (_MOMENT, "Happened until, included"),
    "ingestedAtFrom": (_MOMENT, "Stored since, included"),
    "ingestedAtTo": (_MOMENT, "Stored until, included"),
    "limit": ({"type": "integer", "minimum": 1, "maximum": 100}, "100 by default"),
    "clientId": (_TEXT, "Taken and not used"),
    "customerId": (_TEXT, "There are no customers: refused"),
}
_LISTED_V2: Described = {
    "cursor": (_TEXT, "Go on where a page ended: its nextCursor"),
    "limit": ({"type": "integer", "minimum": 1, "maximum": 100}, "100 by default"),
    "filter": (
        {**_FILTERS, "description": 'By field: {"type": {"$eq": "a"}, "time": {"$gte": "…"}}'},
        "Of id, source, subject and type (operators of texts), time and ingestedAt ($gt, $gte, $lt, $lte)",
    ),
    "clientId": (_TEXT, "Taken and not used"),
}
_PAGE: Described = {
    "page": ({"type": "integer", "minimum": 1}, "From 1"),
    "pageSize": ({"type": "integer", "minimum": 1, "maximum": 1000}, "1000 by default"),
    "order": ({"enum": ["ASC", "DESC"]}, "ASC by default"),
    "orderBy": ({"enum": ["key", "name", "aggregation", "createdAt", "updatedAt"]}, "key by default"),
    "includeDeleted": ({"enum": ["false"]}, "Meters that ended are not shown"),
}
_BAD: Described = {
    "kind": (
        {"enum": ["invalid", "dead", "conflict"]},
        "invalid: counted, but no value for a meter; dead: no event; conflict: contradicts a counted one",
    ),
    "before": ({"type": "integer", "minimum": 1}, "Go on before this number: `next` of the page before"),
    "limit": ({"type": "integer", "minimum": 1, "maximum": 100}, "100 by default"),
    "code": (_TEXT, "Only of this code (invalid, dead)"),
    "type": (_TEXT, "Only of this event type"),
    "source": (_TEXT, "Only from this source (invalid, conflict)"),
    "meter": (_TEXT, "Only of this meter (invalid)"),
}
_CONFLICTS: Described = {
    "source": (_TEXT, "Only from this source"),
    "after": ({"type": "integer", "minimum": 0}, "Go on after this number"),
    "limit": ({"type": "integer", "minimum": 1, "maximum": 100}, "100 by default"),
}


def parameters(described: Described, path: str) -> list[dict[str, Any]]:
    """OpenAPI parameters, those of the path first."""
    found: list[dict[str, Any]] = [
        {"name": part[1:-1], "in": "path", "required": True, "schema": _TEXT}
        for part in path.split("/")
        if part.startswith("{")
    ]
    for name, (schema, text) in described.items():
        one: dict[str, Any] = {"name": name, "in": "query", "description": text, "schema": schema}
        if name == "kind":
            one["required"] = True
        if schema.get("type") == "object":
            if name == "filterGroupBy":
                one |= {"style": "deepObject", "explode": True}
            else:
                del one["schema"]
                one["content"] = {_JSON: {"schema": schema}}
        found.append(one)
    return found


# What a key of several tenants needs on a question about tenants; with another key it may only name its own.
_WHOSE: Described = {"subject": (_TEXT, "Your tenant; one of them, with a key of several")}
_WHOSE_ALL: Described = {"subject": (_TEXTS, "Your tenant; with a key of several, those you ask about")}

PARAMETERS: Mapping[str, Described] = {
    METERS: {**_PAGE, **_WHOSE_ALL},
    METER: _WHOSE_ALL,
    SUBJECTS: {**_WHOSE_ALL, **_SPAN},
    GROUP_VALUES: {**_WHOSE_ALL, **_SPAN},
    QUERY: _QUERY,
    EVENTS: _LISTED,
    EVENTS_V2: {**_LISTED_V2, **_WHOSE_ALL},
    CONFLICTS: {**_CONFLICTS, **_WHOSE},
    CONFLICT: _WHOSE,
    BAD_EVENTS: {**_BAD, **_WHOSE},
}
_OPERATIONS = {
    METERS: ("listMeters", "The meters", "array"),
    METER: ("getMeter", "A meter, by slug or id", "object"),
    SUBJECTS: ("listMeterSubjects", "Whether you used a meter", "array"),
    GROUP_VALUES: (
        "listMeterGroupValues",
        "The values a group key had, of the last 24 hours by default",
        "array",
    ),
    QUERY: ("queryMeter", "What was used, by window and group", "object"),
    EVENTS: ("listEvents", "Your events, newest first, with what is wrong with them", "array"),
    EVENTS_V2: ("listEventsV2", "Your events in pages, newest first, by filters", "object"),
    CONFLICTS: ("listConflicts", "Your events that contradict one that was counted", "object"),
    CONFLICT: ("getConflict", "One of them, beside what was counted", "object"),
    BAD_EVENTS: (
        "listBadEvents",
        "Your events that were not counted, or not by every meter",
        "object",
    ),
}


def openapi_paths() -> dict[str, Any]:
    """The paths in an OpenAPI 3.1 document that has the schema `Problem` and both security schemes."""
    return {
        path: {method.lower(): _operation(path, method) for method in methods}
        for path, methods in ROUTES.items()
    }


def _operation(path: str, method: str) -> dict[str, Any]:
    name, summary, kind = _OPERATIONS[path]
    content: dict[str, Any] = {_JSON: {"schema": {"type": kind}}}
    if path == QUERY:
        content["text/csv"] = {"schema": {"type": "string"}}
    statuses = dict(_REFUSALS)
    if "{" in path:
        statuses["404"] = "There is none of this name."
    found: dict[str, Any] = {
        "operationId": name if method == "GET" else f"{name}Post",
        "summary": summary,
        "security": _SECURITY,
        "responses": {
            "200": {"description": "As OpenMeter's v1 has it.", "content": content},
            **{
                status: {
                    "description": text,
                    "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
                }
                for status, text in sorted(statuses.items())
            },
        },
    }
    if method == "POST":
        properties = {field: schema for field, (schema, _) in PARAMETERS[path].items()}
        found["parameters"] = parameters({}, path)
        found["requestBody"] = {
            "required": True,
            "content": {_JSON: {"schema": {"type": "object", "properties": properties}}},
        }
    else:
        found["parameters"] = parameters(PARAMETERS[path], path)
    return found


def document() -> dict[str, Any]:
    """The whole OpenAPI document of a process that answers nothing else."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "kgents usage",
            "version": "1",
            "description": "Usage as OpenMeter's v1 API has it, for the caller's own tenant, exact.",
        },
        "paths": openapi_paths(),
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "An API key `kg_…`"},
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
            "schemas": {
                "Problem": {
                    "type": "object",
                    "description": "RFC 9457",
                    "required": ["type", "title", "status", "detail"],
                    "properties": {
                        "type": _TEXT,
                        "title": _TEXT,
                        "status": {"type": "integer"},
                        "detail": _TEXT,
                    },
                }
            },
        },
    }
