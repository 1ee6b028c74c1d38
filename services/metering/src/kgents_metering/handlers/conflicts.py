"""`GET /v1/conflicts`: the caller's own events that contradict one that was counted."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from kgents_common.errors import PermanentError
from kgents_metering.handlers.reads import Gate, whole
from kgents_metering.model.query.parameters import from_query_string, its_own, number, one
from kgents_metering.sinks.ledger.conflicts import Conflict, Conflicts

PATH = "/v1/conflicts"
MAX_LISTED = 100
PARAMETERS = ("subject", "source", "after", "limit")
MAX_ID = 2**63 - 1


@dataclass(frozen=True, slots=True)
class ConflictReads:
    """The handlers."""

    conflicts: Conflicts

    async def find(self, request: Request, tenant: str) -> Response:
        """Up to `limit` after the number `after`, in the order of finding; `next` where there may be more."""
        values = from_query_string(request.scope["query_string"], PARAMETERS)
        its_own(values, tenant)
        limit = number(values, "limit", MAX_LISTED, MAX_LISTED)
        after = _number(one(values, "after") or "0", "after")
        found = await self.conflicts.find(
            tenant=tenant, source=one(values, "source"), after=after, limit=limit
        )
        answer: dict[str, object] = {"conflicts": [_line(one) for one in found]}
        if len(found) == limit:
            answer["next"] = found[-1].id
        return _json(answer)

    async def get(self, request: Request, tenant: str) -> Response:
        """One, whole, beside the event that was counted."""
        try:
            one = await self.conflicts.get(_number(request.path_params["id"], "id"), tenant=tenant)
        except PermanentError:
            raise HTTPException(404, "there is no such conflict") from None
        return _json(
            {
                **_line(one),
                "event": msgspec.Raw(bytes(one.body)),
                "counted": {
                    "type": one.counted_type,
                    "time": one.counted_time,
                    "stream_sequence": one.counted_seq,
                    "data": msgspec.Raw(one.counted_data.encode()),
                },
            }
        )


def routes(conflicts: Conflicts, gate: Gate) -> list[BaseRoute]:
    """The paths."""
    reads = ConflictReads(conflicts)
    paths = {PATH: reads.find, PATH + "/{id}": reads.get}
    return [Route(path, gate(whole(handler)), methods=["GET"]) for path, handler in paths.items()]


def _line(one: Conflict) -> dict[str, object]:
    return {
        "number": one.id,
        "id": one.ce_id,
        "source": one.source,
        "stream_sequence": one.seq,
        "found_at": one.at,
        "counted_stream_sequence": one.counted_seq,
    }


def _number(text: str, name: str) -> int:
    if not (text.isascii() and text.isdecimal()) or len(text) > 19 or int(text) > MAX_ID:
        raise HTTPException(400, f"{name}: must be a whole number")
    return int(text)


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
