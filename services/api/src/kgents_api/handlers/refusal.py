"""The one way a handler says no: an exception that is a problem document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import Response

from kgents_common.errors import Violation
from kgents_common.problems import MEDIA_TYPE, problem


class Refused(Exception):  # noqa: N818 it is an answer, not an error of ours
    """Carries the answer; `reason` is its label in the metrics."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        reason: str,
        violations: Sequence[Violation] = (),
        headers: Mapping[str, str] | None = None,
        extensions: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(detail)
        self.reason = reason
        self.response: Response = problem(
            status,
            detail,
            kind=f"urn:kgents:problem:{reason}",
            violations=violations,
            headers=headers,
            extensions=extensions,
        )


def described(refusals: Mapping[str, str]) -> dict[str, Any]:
    """Statuses and what they mean as OpenAPI responses with a problem document."""
    return {
        status: {
            "description": text,
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status, text in refusals.items()
    }
