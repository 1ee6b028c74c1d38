"""`GET /v1/events/stream`: the caller's own tenant's events as server-sent events, while they are stored.

Every event has as its id its stream sequence and when it was stored, so a client that comes back with
`Last-Event-ID` misses nothing and gets nothing twice, and is told where the stream is another by now. A
client that does not read holds up only itself, until the server cuts its connection (`service.serve`,
`stalled_seconds`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from kgents_api.handlers.authentication import Authentication
from kgents_api.handlers.live_client import Client, LiveMetrics
from kgents_api.handlers.live_tails import Tails
from kgents_api.handlers.refusal import Refused, described
from kgents_api.handlers.request import address_of, headers_of
from kgents_api.model import live
from kgents_api.model.caller import Caller
from kgents_api.model.live import EventLog, Place, Tail, TypeFilter
from kgents_common import subjects
from kgents_common.errors import EnvelopeError, TransientError

PATH = "/v1/events/stream"
SCOPE = "events:read"
# Each client that reads for itself holds one consumer and one pull's bytes.
MAX_CATCH_UPS = 64
MAX_CATCH_UPS_A_TENANT = 8
DRAIN_SECONDS = 2.0

_HEADERS = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]


@dataclass(frozen=True, slots=True)
class LiveLimits:
    """How many clients, and how often they hear something."""

    clients: int = 2000
    clients_a_tenant: int = 200
    heartbeat_seconds: float = 15


@dataclass(slots=True)
class _Group:
    """One tenant's clients, and the line they stand in to read for themselves."""

    clients: set[Client] = field(default_factory=set)
    turn: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_CATCH_UPS_A_TENANT))


class Live:
    """The ASGI endpoint; make it inside the event loop."""

    def __init__(
        self, authentication: Authentication, log: EventLog, *, limits: LiveLimits, metrics: LiveMetrics
    ) -> None:
        self._authentication = authentication
        self._log = log
        self._tails = Tails(log)
        self._limits = limits
        self._metrics = metrics
        self._groups: dict[str, _Group] = {}
        self._count = 0
        self._turn = asyncio.Semaphore(MAX_CATCH_UPS)
        self._is_draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = headers_of(scope)
        caller = await self._authentication.caller(headers, SCOPE, address=address_of(scope))
        tenant = _tenant(scope, caller)
        after, wanted = _asked(scope, headers)
        if scope["method"] == "HEAD":
            await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            await send({"type": "http.response.body", "body": b""})
            return
        self._check_room(tenant)
        group = self._groups.setdefault(tenant, _Group())
        client = Client(
            send,
            tenant=tenant,
            wanted=wanted,
            log=self._log,
            turns=(group.turn, self._turn),
            may_stay=lambda: self._may_stay(headers, tenant),
            metrics=self._metrics,
            heartbeat_seconds=self._limits.heartbeat_seconds,
        )
        self._count += 1
        group.clients.add(client)
        try:
            async with self._tails.follow(tenant) as tail:
                place, gap = await self._begin(tenant, tail, after)
                await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
                await self._serve(client, tail, place, gap, receive)
        except TransientError:
            raise Refused(
                503,
                "the stream cannot be read now; come back with the same Last-Event-ID",
                reason="live_unavailable",
                headers={"retry-after": "2"},
            ) from None
        finally:
            self._count -= 1
            group.clients.discard(client)
            client.finished.set()
            if not group.clients and self._groups.get(tenant) is group:
                del self._groups[tenant]

    async def drain(self) -> None:
        """End every stream cleanly and take no more; clients that do not read are left to the server."""
        self._is_draining = True
        clients = [client for group in self._groups.values() for client in group.clients]
        for client in clients:
            client.end("drained")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                await asyncio.gather(*(client.finished.wait() for client in clients))

    def _check_room(self, tenant: str) -> None:
        group = self._groups.get(tenant)
        why = None
        if self._is_draining:
            why = "this process is stopping"
        elif self._count >= self._limits.clients:
            why = "too many live streams at once"
        elif group is not None and len(group.clients) >= self._limits.clients_a_tenant:
            why = f"your tenant has {self._limits.clients_a_tenant} live streams open already"
        if why is not None:
            raise Refused(503, why, reason="live_full", headers={"retry-after": "5"})

    async def _begin(self, tenant: str, tail: Tail, after: Place | None) -> tuple[Place, bytes]:
        """Where to begin, and what to say about what cannot be had."""
        if after is None:
            return Place(tail.head, tail.head_time), b""
        asked = after.sequence
        if after.time and not tail.holds(after) and not await self._log.knows(after):
            bounds = await self._log.bounds(tenant)
            return bounds.before_all, live.gap(asked, bounds.before_all, "made_anew")
        if tail.floor <= asked <= tail.head:
            return after, b""
        bounds = await self._log.bounds(tenant)
        if asked > bounds.last:
            return bounds.end, live.gap(asked, bounds.end, "beyond_the_end")
        if asked + 1 < bounds.first:
            return bounds.before_all, live.gap(asked, bounds.before_all, "no_longer_held")
        return after, b""

    async def _serve(self, client: Client, tail: Tail, place: Place, gap: bytes, receive: Receive) -> None:
        self._metrics.clients.inc()
        reason = "failed"
        try:
            reason = await client.serve(tail, place, gap, receive)
        finally:
            self._metrics.clients.dec()
            self._metrics.ended.labels(reason).inc()

    async def _may_stay(self, headers: Mapping[str, str], tenant: str) -> bool:
        """Whether the credentials are still good; where that cannot be known, they were."""
        try:
            caller = await self._authentication.caller(headers, SCOPE)
        except Refused as refusal:
            return refusal.response.status_code not in (401, 403)
        return caller.may_be(tenant)


def _tenant(scope: Scope, caller: Caller) -> str:
    """Whose events: the caller's own tenant's, or the one that `subject` names for a key of several.

    Raises:
        Refused: 400 without one, 403 for another's.
    """
    if caller.tenants is None:
        return caller.tenant
    named: list[str] = parse_qs(scope["query_string"].decode("latin-1")).get("subject", [])
    if len(named) != 1:
        raise Refused(400, "subject: a key of several tenants names one of them", reason="invalid")
    if not caller.may_be(named[0]) or not subjects.is_tenant(named[0]):
        raise Refused(403, "subject: not one of the tenants of these credentials", reason="foreign_tenant")
    return named[0]


def _asked(scope: Scope, headers: Mapping[str, str]) -> tuple[Place | None, TypeFilter]:
    """The position to go on after, and the types.

    Raises:
        Refused: 400 where one is wrong.
    """
    query = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True, max_num_fields=None)
    given = headers.get("last-event-id") or query.get("last_event_id", [""])[-1]
    try:
        after = live.parse_position(given) if given else None
        return after, TypeFilter.parse(query.get("type", []))
    except EnvelopeError as error:
        raise Refused(400, str(error), reason="invalid", violations=error.violations) from None


def routes(door: Live) -> list[BaseRoute]:
    """`GET /v1/events/stream`."""
    return [Route(PATH, door, methods=["GET"])]


def openapi_paths() -> dict[str, Any]:
    """The stream in the OpenAPI document."""
    refused = {
        "400": "Last-Event-ID or a type is not one, or a key of several tenants comes without a subject.",
        "401": "No credentials, or unknown ones.",
        "403": "The credentials lack the scope events:read, or are not of the subject's tenant.",
        "429": "Too many unknown credentials from this address.",
        "503": "Too many streams, or the stream cannot be read now: come back after Retry-After.",
    }
    position = {"type": "string", "pattern": "^[0-9]{1,20}(-[0-9]{1,20})?$"}
    return {
        PATH: {
            "get": {
                "operationId": "streamEvents",
                "summary": "Follow your events as they are stored",
                "description": "Server-sent events. id: the stream sequence and when it was stored;"
                " event: the CloudEvent's type; data: the CloudEvent on one line. Without Last-Event-ID, from"
                " now. An event of the name"
                " gap, which is no CloudEvent, says what is no longer to be had. A client that does not"
                " read is disconnected; it comes back with Last-Event-ID and misses nothing.",
                "security": [{"bearer": []}, {"key": []}],
                "parameters": [
                    {
                        "name": "type",
                        "in": "query",
                        "description": "Only events of this type; llm.* for all that start with llm. May be"
                        " given more than once.",
                        "schema": {
                            "type": "array",
                            "maxItems": live.MAX_TYPES,
                            "items": {
                                "type": "string",
                                "pattern": live.TYPE_FILTER_PATTERN,
                                "maxLength": 255,
                            },
                        },
                    },
                    {
                        "name": "Last-Event-ID",
                        "in": "header",
                        "description": "Go on after this event",
                        "schema": position,
                    },
                    {
                        "name": "last_event_id",
                        "in": "query",
                        "description": "The same, for clients that cannot set headers",
                        "schema": position,
                    },
                ],
                "responses": {
                    "200": {
                        "description": "The events, until one side ends it.",
                        "content": {"text/event-stream": {"schema": {"type": "string"}}},
                    },
                    **described(refused),
                },
            }
        }
    }
