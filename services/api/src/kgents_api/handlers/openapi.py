"""The door's contract as an OpenAPI 3.1 document, and a page that shows it without fetching anything."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Route

from kgents_api.handlers.intake import JSON, Limits
from kgents_api.handlers.refusal import described
from kgents_api.model.receipts import Receipts
from kgents_common import envelope, scalars, subjects

_EVENT = {"$ref": "#/components/schemas/CloudEvent"}
_SECURITY: list[dict[str, list[str]]] = [{"bearer": []}, {"key": []}]
_REFUSALS = {
    400: "A field is wrong, or the body is not JSON; nothing of the request was stored.",
    401: "No credentials, or unknown ones.",
    403: "The credentials lack the scope, or the subject is another tenant's.",
    413: "The body, an event or the batch is too large.",
    415: "A content type or encoding that is not taken.",
    429: "Too many events of this tenant, or too many unknown credentials: come back after Retry-After.",
    503: "Not durable: send the same request again after Retry-After. What was stored is recognised.",
}
_STYLE = """
body{font:16px/1.5 system-ui;max-width:52rem;margin:2rem auto;padding:0 1rem}
code,pre{font:14px ui-monospace,monospace}
pre{background:#8881;padding:.7rem;overflow:auto}
h2{margin-top:2.5rem}
td{padding:.1rem 1rem .1rem 0;vertical-align:top}
b{display:inline-block;min-width:4rem}
"""


def document(limits: Limits, more: Mapping[str, Any]) -> dict[str, Any]:
    """The OpenAPI document, as data; `more` are paths that not every deployment has."""
    (receipts,), schemas = msgspec.json.schema_components([Receipts])
    described: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "kgents api",
            "version": "1",
            "description": "Agent events in, durable before the answer. An event is counted once, for ever:"
            " its identity is tenant, source and id, so sending it again is always safe.",
        },
        "paths": {
            "/v1/events": {
                "post": {
                    "operationId": "publishEvents",
                    "summary": "Publish CloudEvents",
                    "description": "Structured, batch or binary mode, packed by gzip or zstd where"
                    " Content-Encoding says so. All events of a request are stored, or the answer says which"
                    " are not. With Prefer: handling=lenient each event of a batch is judged by itself: the"
                    " good ones are stored, and `refused` tells of the others.",
                    "security": _SECURITY,
                    "requestBody": _events_body(limits),
                    "responses": {
                        "202": {
                            "description": "Every event is durable: in the stream, or in the door's spool,"
                            " on its way there.",
                            "content": {JSON: {"schema": receipts}},
                        },
                        **_refusals(400, 401, 403, 413, 415, 429, 503),
                    },
                }
            },
            "/api/v1/events": {
                "post": {
                    "operationId": "ingestEvents",
                    "summary": "Ingest as OpenMeter does",
                    "description": "For OpenMeter's SDKs and collectors.",
                    "security": _SECURITY,
                    "requestBody": _events_body(limits),
                    "responses": {
                        "204": {
                            "description": "Every event is durable: in the stream or the door's spool.",
                            "headers": {
                                "Kgents-Stream-Seq": {
                                    "description": "The last event's stream sequence",
                                    "schema": {"type": "integer"},
                                },
                                "Kgents-Stored": {
                                    "description": "`spool` where the last event is there; else absent",
                                    "schema": {"const": "spool"},
                                },
                            },
                        },
                        **_refusals(400, 401, 403, 413, 415, 429, 503),
                    },
                }
            },
            "/health": {"get": _health("health", "How this process does")},
            "/health/live": {"get": _health("live", "Whether this process runs")},
            "/health/ready": {"get": _health("ready", "Whether to send work here")},
        },
        "components": {
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API key `kg_…`, or a session's token `ks_…`",
                },
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
            "schemas": {**schemas, "CloudEvent": event_schema(), "Problem": _problem()},
        },
    }
    for path, operations in more.items():  # a path may have methods of both
        described["paths"][path] = {**described["paths"].get(path, {}), **operations}
    return described


def routes(limits: Limits, more: Mapping[str, Any]) -> list[BaseRoute]:
    """`/openapi.json` and `/docs`."""
    described = document(limits, more)
    encoded = msgspec.json.encode(described)
    page = _page(described)

    async def openapi(_: Request) -> Response:
        return Response(encoded, media_type="application/json")

    async def docs(_: Request) -> Response:
        return HTMLResponse(page)

    return [Route("/openapi.json", openapi), Route("/docs", docs)]


def _events_body(limits: Limits) -> dict[str, Any]:
    batch = {"type": "array", "items": _EVENT, "minItems": 1, "maxItems": limits.batch_events}
    return {
        "required": True,
        "content": {
            envelope.STRUCTURED: {"schema": _EVENT},
            envelope.BATCH: {"schema": batch},
            JSON: {"schema": {"anyOf": [_EVENT, batch]}},
        },
    }


def _refusals(*statuses: int) -> dict[str, Any]:
    return described({str(status): _REFUSALS[status] for status in statuses})


def _health(operation: str, summary: str) -> dict[str, Any]:
    schema = {
        "type": "object",
        "required": ["status"],
        "properties": {"status": {"enum": ["ok", "degraded", "down"]}},
    }
    answers = {"200": {"description": "Yes.", "content": {JSON: {"schema": schema}}}}
    if operation != "live":
        answers["503"] = {"description": "No.", "content": {JSON: {"schema": schema}}}
    return {"operationId": operation, "summary": summary, "responses": answers}


def event_schema() -> dict[str, Any]:
    """An event as it is taken, in JSON Schema."""
    text = {"type": "string", "minLength": 1, "pattern": envelope.TEXT_PATTERN}
    return {
        "type": "object",
        "description": "CloudEvents 1.0, JSON format. Extension attributes are kept. Nowhere U+0000, nor a"
        " number beyond float64's range or with an exponent of more than six digits.",
        "required": ["specversion", "id", "source", "type"],
        "propertyNames": {"pattern": envelope.ATTRIBUTE_NAME_PATTERN, "not": {"const": "data_base64"}},
        "properties": {
            "specversion": {"const": "1.0"},
            "id": {
                **text,
                "maxLength": envelope.MAX_ID_CHARACTERS,
                "description": "With source, its identity",
            },
            "source": {**text, "maxLength": envelope.MAX_SOURCE_CHARACTERS},
            "type": {
                "type": "string",
                "pattern": subjects.TYPE_PATTERN,
                "maxLength": 255,
                "not": {"pattern": f"^{re.escape(envelope.RESERVED_TYPES)}"},
                "description": f"{subjects.TYPE_RULE}; not beginning with '{envelope.RESERVED_TYPES}'",
            },
            "subject": {
                "type": ["string", "null"],
                "pattern": subjects.TENANT_PATTERN,
                "description": "Your tenant, or absent; required with a key of several tenants",
            },
            "time": {
                "type": ["string", "null"],
                "format": "date-time",
                "description": "When it happened, from 1970 to five minutes from now; the time of receipt"
                " where absent",
            },
            "datacontenttype": {
                "enum": ["application/json", "application/json; charset=utf-8", None],
                "description": "JSON in UTF-8, with any parameters",
            },
            "dataschema": {**text, "type": ["string", "null"], "maxLength": envelope.MAX_SCHEMA_CHARACTERS},
            envelope.AGENT: {
                "description": "Which agent it is from; a session's own, or absent, where a session sends it"
            },
            "data": {
                "type": ["object", "null"],
                "description": f"At most {scalars.MAX_DEPTH} levels deep, numbers within float64's range",
            },
        },
    }


def _problem() -> dict[str, Any]:
    return {
        "type": "object",
        "description": "RFC 9457",
        "required": ["type", "title", "status", "detail"],
        "properties": {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "invalid_parameters": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["field", "rule"],
                    "properties": {"field": {"type": "string"}, "rule": {"type": "string"}},
                },
            },
        },
    }


def _page(described: dict[str, Any]) -> str:
    """The document as one self-contained page."""
    title, description = (html.escape(described["info"][name]) for name in ("title", "description"))
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>{title}</title><style>{_STYLE}</style>",
        f"<h1>{title}</h1><p>{description}</p>",
        "<p>The document itself: <a href=/openapi.json>/openapi.json</a></p>",
    ]
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            parts.append(f"<h2><b>{method.upper()}</b> <code>{html.escape(path)}</code></h2>")
            parts.append(
                f"<p>{html.escape(operation['summary'])}. {html.escape(operation.get('description', ''))}</p>"
            )
            content = operation.get("requestBody", {}).get("content", {})
            if content:
                parts.append(
                    f"<p>Takes {', '.join(f'<code>{html.escape(kind)}</code>' for kind in content)}.</p>"
                )
            rows = "".join(
                f"<tr><td><code>{status}</code><td>{html.escape(answer['description'])}"
                for status, answer in operation["responses"].items()
            )
            parts.append(f"<table>{rows}</table>")
    for name, schema in described["components"]["schemas"].items():
        text = msgspec.json.format(msgspec.json.encode(schema), indent=2).decode()
        parts.append(f"<h2>{html.escape(name)}</h2><pre>{html.escape(text)}</pre>")
    return "".join(parts)
