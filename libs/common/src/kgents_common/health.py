"""What a process knows of itself and its neighbours, as liveness, readiness and one health document.

Nothing here asks a neighbour while a caller waits: probes return what loops and circuits already know.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec
import structlog
from nats.errors import Error as NatsError
from prometheus_client import CollectorRegistry
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from kgents_common import subjects
from kgents_common.cancelling import cancelled
from kgents_common.clock import Clock
from kgents_common.connection import Connection
from kgents_common.resilience import CircuitBreaker, CircuitState
from kgents_common.telemetry.metrics import metrics_response

_log = structlog.get_logger()


class Status(StrEnum):
    """How well a thing does."""

    OK = "ok"
    DEGRADED = "degraded"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class Check:
    """What a probe found."""

    status: Status
    detail: str = ""


Probe = Callable[[], Check]


def up(is_up: bool, detail: str = "") -> Check:
    """A thing that is there or is not."""
    return Check(Status.OK if is_up else Status.DOWN, detail)


class LastLook:
    """Whether a neighbour had what we need when it was last looked at: a database, also its tables.

    Args:
        fault: Until the first look; empty for none.
    """

    def __init__(self, fault: str = "") -> None:
        self._fault = fault

    @contextlib.contextmanager
    def looking(self) -> Iterator[None]:
        """While it is looked at; any error is a fault until a look without one."""
        try:
            yield
        except Exception as error:
            self._fault = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise
        self._fault = ""

    def check(self) -> Check:
        """For the health document."""
        return up(not self._fault, self._fault)


def circuit(breaker: CircuitBreaker | None) -> Check:
    """A neighbour by its circuit; None for one that is not configured."""
    if breaker is None:
        return Check(Status.OK, "not configured")
    state = breaker.state
    return Check(
        Status.OK if state is CircuitState.CLOSED else Status.DEGRADED, f"circuit {state.name.lower()}"
    )


def publishing(connection: Connection, breaker: CircuitBreaker) -> Check:
    """NATS as a publisher has it: down where nobody reads what the server says, else by its circuit."""
    if not connection.is_reading:  # a socket that nobody reads acknowledges nothing
        return Check(Status.DOWN, "not connected")
    return circuit(breaker)


@dataclass(slots=True)
class Health:
    """The probes of one process.

    Attributes:
        needed: Without these the process cannot do its work: it is not ready.
        useful: Without these it works less well: it is degraded.
    """

    service: str
    instance: str
    needed: dict[str, Probe] = field(default_factory=dict)
    useful: dict[str, Probe] = field(default_factory=dict)
    is_draining: bool = False

    def document(self) -> dict[str, object]:
        """The health document: overall status and every probe's finding."""
        needed = {name: probe() for name, probe in self.needed.items()}
        useful = {name: probe() for name, probe in self.useful.items()}
        return {
            "status": self._overall(needed, useful),
            "service": self.service,
            "instance": self.instance,
            "checks": {
                name: {"status": check.status, **({"detail": check.detail} if check.detail else {})}
                for name, check in {**needed, **useful}.items()
            },
        }

    def is_ready(self) -> bool:
        """Whether to send work here: nothing needed is down, and it is not draining."""
        return not self.is_draining and all(p().status is not Status.DOWN for p in self.needed.values())

    def _overall(self, needed: Mapping[str, Check], useful: Mapping[str, Check]) -> Status:
        if self.is_draining or any(c.status is Status.DOWN for c in needed.values()):
            return Status.DOWN
        if any(c.status is not Status.OK for c in (*needed.values(), *useful.values())):
            return Status.DEGRADED
        return Status.OK


def routes(health: Health) -> list[BaseRoute]:
    """`/health`, `/health/live`, `/health/ready` for whoever reaches the port: the status alone."""

    async def ready(_: Request) -> Response:
        is_ready = health.is_ready()
        return _json({"status": "ok" if is_ready else "down"}, 200 if is_ready else 503)

    async def document(_: Request) -> Response:
        status = health.document()["status"]
        return _json({"status": status}, 503 if status is Status.DOWN else 200)

    return [
        Route("/health", document),
        Route("/health/live", _live),
        Route("/health/ready", ready),
    ]


def operations_routes(health: Health, registry: CollectorRegistry) -> list[BaseRoute]:
    """The same with every probe's finding, and `/metrics`: for operators, on a port of their own."""

    async def ready(_: Request) -> Response:
        return _json(health.document(), 200 if health.is_ready() else 503)

    async def document(_: Request) -> Response:
        found = health.document()
        return _json(found, 503 if found["status"] is Status.DOWN else 200)

    async def metrics(request: Request) -> Response:
        return metrics_response(registry, request)

    return [
        Route("/health", document),
        Route("/health/live", _live),
        Route("/health/ready", ready),
        Route("/metrics", metrics),
        Route("/metrics/", metrics),
    ]


async def _live(_: Request) -> Response:
    return _json({"status": "ok"})


def _json(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


class Heartbeat:
    """Publishes the health document to `events.heartbeat.<service>.<instance>` every few seconds.

    Only the newest matters and nobody needs an old one, so it is in no stream and nobody acknowledges it.
    """

    def __init__(self, health: Health, connection: Connection, clock: Clock, *, every_seconds: float) -> None:
        self._health = health
        self._connection = connection
        self._clock = clock
        self._every = every_seconds
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to beat."""
        self._task = asyncio.create_task(self._beat(), name="heartbeat")

    async def stop(self) -> None:
        """Stop beating."""
        await cancelled(self._task)

    async def _beat(self) -> None:
        subject = subjects.heartbeat(self._health.service, self._health.instance)
        while True:
            now = self._clock.now()
            body = msgspec.json.encode({**self._health.document(), "at": now})
            if self._connection.is_connected:
                try:
                    await self._connection.client.publish(subject, body)
                except (NatsError, OSError, ValueError) as error:
                    _log.debug("heartbeat.not_sent", error=type(error).__name__)
            await asyncio.sleep(self._every)
