"""`GET /health/saas`: how the whole system does, from memory: own circuits and heartbeats that are followed.

It is for people and dashboards. Whether to send work to this process is `/health/ready`'s to say, and whether
it runs `/health/live`'s: neither depends on a worker.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec
import structlog
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from kgents_api.model.saas import Finding, Heartbeats, State, overall
from kgents_common.cancelling import cancelled
from kgents_common.clock import Clock
from kgents_common.connection import Connection
from kgents_common.errors import KgentsError, PermanentError
from kgents_common.health import Check, Health

PATH = "/health/saas"
SUBJECT = "events.heartbeat.>"
LOOK_SECONDS = 1.0
# Who calls a neighbour that this process does not call itself.
TELLERS: Mapping[str, str] = {"openmeter": "metering", "stripe": "billing", "redis": "billing"}

_log = structlog.get_logger()


class HeartbeatFollower:
    """Hears the heartbeats, as a part: a plain subscription, as only the newest of each matters."""

    def __init__(self, connection: Connection, heartbeats: Heartbeats, clock: Clock) -> None:
        self._connection = connection
        self._heartbeats = heartbeats
        self._clock = clock
        self._following: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin; returns at once, whether NATS is there or not."""
        self._following = asyncio.create_task(self._follow(), name="saas.heartbeats")

    async def stop(self) -> None:
        """Stop following."""
        await cancelled(self._following)

    async def _follow(self) -> None:
        await self._subscribe()
        while True:  # the client subscribes again by itself when it reconnects
            self._heartbeats.note_link(self._connection.is_connected, self._clock.monotonic())
            await asyncio.sleep(LOOK_SECONDS)

    async def _subscribe(self) -> None:
        while True:
            await self._connection.wait()
            try:
                await self._connection.client.subscribe(SUBJECT, cb=self._hear)
            except (KgentsError, NatsError, OSError) as error:
                _log.warning("saas.not_following", error=type(error).__name__)
                await asyncio.sleep(LOOK_SECONDS)
            else:
                return

    async def _hear(self, message: Msg) -> None:
        _, _, service, instance = message.subject.split(".", 3)
        try:
            self._heartbeats.note(service, instance, message.data, self._clock.monotonic())
        except PermanentError:
            _log.warning("saas.heartbeat_unreadable", service=service)


class Saas:
    """The system's health document.

    Args:
        health: This process's own probes.
        heartbeats: What is heard of the workers.
    """

    def __init__(self, health: Health, heartbeats: Heartbeats, clock: Clock) -> None:
        self._health = health
        self._heartbeats = heartbeats
        self._clock = clock

    def document(self) -> dict[str, Any]:
        """The document: the overall status, neighbours under `components`, services under `workers`."""
        now = self._clock.monotonic()
        needed = {name: _own(probe()) for name, probe in self._health.needed.items()}
        own = {name: _own(probe()) for name, probe in self._health.useful.items()}
        told = {
            name: self._heartbeats.neighbour(name, teller, now)
            for name, teller in TELLERS.items()
            if name not in needed and name not in own and teller in self._heartbeats.expected
        }
        workers = {name: self._heartbeats.worker(name, now) for name in self._heartbeats.expected}
        others = [*own.values(), *told.values(), *workers.values()]
        status = overall([f.status for f in needed.values()], [f.status for f in others])
        return {
            "status": State.DOWN if self._health.is_draining else status,
            "components": {**needed, **own, **told},
            "workers": workers,
        }


def _own(check: Check) -> Finding:
    return Finding(State(check.status.value), check.detail)


def routes(saas: Saas, *, is_for_operators: bool) -> list[BaseRoute]:
    """`GET /health/saas`: the whole document for operators, the overall status for anybody."""

    async def answer(_: Request) -> Response:
        document = saas.document()
        status = 503 if document["status"] is State.DOWN else 200
        told = document if is_for_operators else {"status": document["status"]}
        return Response(
            msgspec.json.encode(told),
            status,
            media_type="application/json",
            headers={"cache-control": "no-store"},
        )

    return [Route(PATH, answer, methods=["GET"])]


def openapi_paths() -> dict[str, Any]:
    """The document in the OpenAPI document."""
    content = {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["status"],
                "properties": {"status": {"enum": ["ok", "degraded", "down"]}},
            }
        }
    }
    return {
        PATH: {
            "get": {
                "operationId": "saas",
                "summary": "How the whole system does",
                "description": "Answered from memory: this process's circuits and the workers' heartbeats."
                " Operators see each part's on their port.",
                "responses": {
                    "200": {"description": "ok, or degraded: events are taken.", "content": content},
                    "503": {"description": "down: events are not taken.", "content": content},
                },
            }
        }
    }
