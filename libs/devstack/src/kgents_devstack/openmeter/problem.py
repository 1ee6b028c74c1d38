"""Refusals as OpenMeter words them: RFC 7807 documents of v1, and those of v3; it decides nothing."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus

import msgspec
from starlette.responses import Response

PROBLEM_TYPE = "application/problem+json"
# What stands before OpenMeter answers these, and it does not speak JSON.
_PROXY_STATUSES = frozenset({HTTPStatus.BAD_GATEWAY, HTTPStatus.GATEWAY_TIMEOUT})


@dataclass(frozen=True, slots=True)
class InvalidParameter:
    """One entry of v3's `invalid_parameters`; `source` is body, path, query or header."""

    field: str
    rule: str
    reason: str
    source: str = "body"


class Refusal(Exception):  # noqa: N818 not an error of ours: an answer to give
    """A request that is answered with a problem document.

    Args:
        by_schema: The schema validator refused it, which knows no request id (`instance` is absent).
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        by_schema: bool = False,
        parameters: Sequence[InvalidParameter] = (),
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.by_schema = by_schema
        self.parameters = tuple(parameters)


def respond(refusal: Refusal, *, version: str = "v1", headers: Mapping[str, str] | None = None) -> Response:
    """The answer for a refusal (v1: `pkg/models/problem.go`; v3: `api/v3/apierrors/errors.go`)."""
    status = HTTPStatus(refusal.status)
    if status in _PROXY_STATUSES:
        page = f"<html><body><h1>{status.value} {status.phrase}</h1></body></html>"
        return Response(page, status, headers=headers, media_type="text/html")
    document: dict[str, object] = {"type": "about:blank", "title": status.phrase, "status": status.value}
    detail = "" if status is HTTPStatus.INTERNAL_SERVER_ERROR else refusal.detail
    if version == "v3":
        document["detail"] = detail
        document["instance"] = f"openmeter:trace:{uuid.uuid4().hex}"
        if refusal.parameters:
            document["invalid_parameters"] = [
                {"field": p.field, "rule": p.rule, "reason": p.reason, "source": p.source}
                for p in refusal.parameters
            ]
    else:
        if detail:
            document["detail"] = detail
        if not refusal.by_schema:
            document["instance"] = f"urn:request:{uuid.uuid4().hex}"
    return Response(msgspec.json.encode(document), status, headers=headers, media_type=PROBLEM_TYPE)
