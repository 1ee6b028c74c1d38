"""`GET /openapi.json` of the reads: the contract as a document; it answers anybody."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from kgents_common import usage_contract


def route() -> BaseRoute:
    """The path."""
    encoded = msgspec.json.encode(usage_contract.document())

    async def openapi(_: Request) -> Response:
        return Response(encoded, media_type="application/json")

    return Route("/openapi.json", openapi)
