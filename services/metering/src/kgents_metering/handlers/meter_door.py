"""Meters at run time, in OpenMeter's v1 shapes (`api/openapi.yaml`: createMeter, updateMeter, deleteMeter).

Meters are every tenant's: the scope is an operator's, and counts on a key of every tenant alone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from kgents_common.errors import ConfigurationError
from kgents_common.keyring import KeyRecord, presented
from kgents_common.usage_contract import METER, METERS
from kgents_metering.handlers.reads.answers import as_json, meter
from kgents_metering.model.meters import Meter, parse
from kgents_metering.sinks.ledger.meter_editing import MeterConflictError, MeterEditing, NoMeterError

SCOPE = "meters:write"
PROGRESS = "/v1/meters/{meter}/progress"
CHANGES = "/v1/meter-changes"
MAX_BODY_BYTES = 64 * 1024
MAX_CHANGES = 100
# What may change of a meter (OpenMeter's MeterUpdate).
CHANGEABLE = ("name", "description", "metadata", "groupBy")

Endpoint = Callable[[Request], Awaitable[Response]]


class MeterDoor:
    """The handlers.

    Args:
        actor_of: The id of the key that a request shows; raises HTTPException where it may not.
    """

    def __init__(self, editing: MeterEditing, actor_of: Callable[[Request], str]) -> None:
        self._editing = editing
        self._actor_of = actor_of

    async def create(self, request: Request) -> Response:
        """201 and the meter; history is measured later."""
        actor = self._actor_of(request)
        found = await self._editing.create(_meter(await _body(request)), actor)
        response = as_json(meter(found))
        response.status_code = 201
        return response

    async def update(self, request: Request) -> Response:
        """200 and the meter."""
        actor = self._actor_of(request)
        wish = await _body(request)
        fixed = sorted(set(wish) - set(CHANGEABLE))
        if fixed:
            raise HTTPException(400, f"{fixed[0][:64]!a}: only {', '.join(CHANGEABLE)} may change")

        def change(before: Meter) -> Meter:
            after = _meter({**before.definition(), **wish})
            return replace(after, event_from=before.event_from)

        return as_json(meter(await self._editing.update(request.path_params["meter"], change, actor)))

    async def delete(self, request: Request) -> Response:
        """204."""
        await self._editing.delete(request.path_params["meter"], self._actor_of(request))
        return Response(status_code=204)

    async def progress(self, request: Request) -> Response:
        """How far a meter's history is measured; it answers queries once it is."""
        self._actor_of(request)
        measured, total = await self._editing.progress(request.path_params["meter"])
        return as_json({"measured": measured, "total": total, "isReady": measured >= total})

    async def changes(self, request: Request) -> Response:
        """The newest changes of meters, with when and by whom."""
        self._actor_of(request)
        found = await self._editing.changes(MAX_CHANGES)
        return as_json([{name: getattr(one, name) for name in one.__slots__} for one in found])


def actor_by_key(find: Callable[[str], KeyRecord | None]) -> Callable[[Request], str]:
    """A function from a request to the id of its key; it raises HTTPException, 401 or 403."""

    def actor_of(request: Request) -> str:
        record = find(presented(request.headers))
        if record is None:
            raise HTTPException(401, "these credentials are not known", {"www-authenticate": "Bearer"})
        if SCOPE not in record.scopes:
            raise HTTPException(403, f"these credentials lack the scope {SCOPE}")
        if not record.is_every:  # made by a release that gave the scope to any key
            raise HTTPException(
                403, f"meters are every tenant's: {SCOPE} counts on a key of every tenant alone"
            )
        return record.id

    return actor_of


def routes(door: MeterDoor) -> list[BaseRoute]:
    """The paths, each answering what goes wrong."""
    return [
        Route(METERS, _told(door.create), methods=["POST"]),
        Route(METER, _told(door.update), methods=["PUT"]),
        Route(METER, _told(door.delete), methods=["DELETE"]),
        Route(PROGRESS, _told(door.progress), methods=["GET"]),
        Route(CHANGES, _told(door.changes), methods=["GET"]),
    ]


def _told(endpoint: Endpoint) -> Endpoint:
    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except NoMeterError as error:
            raise HTTPException(404, str(error)) from None
        except MeterConflictError as error:
            raise HTTPException(409, str(error)) from None
        except ConfigurationError as error:
            raise HTTPException(400, str(error)) from None

    return answer


async def _body(request: Request) -> dict[str, object]:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise HTTPException(413, f"the body must be at most {MAX_BODY_BYTES} bytes")
    try:
        return msgspec.json.decode(body, type=dict[str, object])
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise HTTPException(400, "the body must be a JSON object") from None


def _meter(item: Mapping[str, object]) -> Meter:
    try:
        (found,) = parse({"meters": [dict(item)]})
    except ConfigurationError as error:
        raise HTTPException(400, str(error).removeprefix("meters[0].").removeprefix("meters[0]: ")) from None
    return found
