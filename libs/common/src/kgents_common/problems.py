"""RFC 9457 problem+json answers, the same at every door; it decides no status of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
from starlette.responses import Response

from kgents_common.errors import Violation

MEDIA_TYPE = "application/problem+json"
MAX_VIOLATIONS = 100

TITLES = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    406: "Not Acceptable",
    408: "Request Timeout",
    409: "Conflict",
    411: "Length Required",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    422: "Unprocessable Content",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


def problem(
    status: int,
    detail: str,
    *,
    kind: str = "about:blank",
    violations: Sequence[Violation] = (),
    headers: Mapping[str, str] | None = None,
    extensions: Mapping[str, object] | None = None,
) -> Response:
    """A problem document (RFC 9457 section 3.1) as a response.

    Args:
        status: The HTTP status, also in the body.
        detail: What is wrong with this request, for a person.
        kind: The problem type's URI reference.
        violations: Wrong fields, given as `invalid_parameters: [{field, rule}]`, at most 100.
    """
    body: dict[str, object] = {
        "type": kind,
        "title": TITLES.get(status, "Error"),
        "status": status,
        "detail": detail,
        **(extensions or {}),
    }
    if violations:
        body["invalid_parameters"] = [{"field": v.field, "rule": v.rule} for v in violations[:MAX_VIOLATIONS]]
    return Response(msgspec.json.encode(body), status, headers=headers, media_type=MEDIA_TYPE)
