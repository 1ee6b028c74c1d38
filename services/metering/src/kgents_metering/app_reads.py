"""Where the reads' parts meet, whether they share a process with the writer or have one of their own."""

from __future__ import annotations

import os
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool
from starlette.routing import BaseRoute

from kgents_common import database, health, service
from kgents_common.application import application
from kgents_common.clock import Clock
from kgents_common.connection import Connection
from kgents_common.health import Health, Heartbeat, LastLook, up
from kgents_common.keyring import Keyring, open_keyring
from kgents_common.request_metrics import RequestMetrics
from kgents_common.telemetry import Tracing, new_registry
from kgents_common.upkeep import Round, Upkeep, Work
from kgents_metering.handlers import conflicts, meter_door, reads
from kgents_metering.handlers.authorization import record_by_key
from kgents_metering.handlers.meter_door import MeterDoor, actor_by_key
from kgents_metering.handlers.reads import Admission, Gate, bad_events, contract
from kgents_metering.metrics import ReadMetrics
from kgents_metering.settings import MeteringSettings
from kgents_metering.sinks.ledger.conflicts import Conflicts
from kgents_metering.sinks.ledger.meter_editing import MeterEditing
from kgents_metering.sinks.ledger.reads import ReadLimits, UsageReads
from kgents_metering.sinks.ledger.schema import is_current

SERVICE = "metering-reads"

Pool = AsyncConnectionPool[AsyncConnection]


@dataclass(frozen=True, slots=True)
class ReadSide:
    """The reads of a process: their routes, and the pools that are theirs alone."""

    routes: list[BaseRoute]
    pool: Pool
    editing_pool: Pool

    def parts(self) -> list[ReadPool]:
        """What is started and stopped."""
        return [ReadPool(self.pool), ReadPool(self.editing_pool)]


class ReadPool:
    """The reads' pool as a part; it opens whether Postgres is there or not."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def start(self) -> None:
        """Open."""
        await self._pool.open()

    async def stop(self) -> None:
        """Close."""
        await self._pool.close(timeout=5)


def read_side(
    settings: MeteringSettings, keyring: Keyring, registry: CollectorRegistry, clock: Clock
) -> ReadSide:
    """The reads with connections, places and limits of their own: nothing the writer has is shared."""
    pool = database.make_pool(
        settings.database_url,
        application="kgent-metering-reads",
        max_size=settings.reads_connections,
        statement_timeout_seconds=settings.reads_statement_seconds,
        is_read_only=True,
    )
    # Meters change seldom, one at a time, and wait for nobody's reads.
    editing_pool = database.make_pool(
        settings.database_url,
        application="kgent-metering-meters",
        max_size=1,
        statement_timeout_seconds=settings.reads_statement_seconds,
    )
    limits = ReadLimits(rows=settings.reads_max_rows, statement_seconds=settings.reads_statement_seconds)
    admission = Admission(
        running_per_tenant=settings.reads_per_tenant,
        waiting_per_tenant=settings.reads_waiting_per_tenant,
        seconds=settings.reads_seconds,
    )
    usage = UsageReads(pool, limits)
    gate = Gate(record_by_key(keyring), admission, ReadMetrics(registry))
    routes = [
        *reads.routes(usage, gate, clock),
        *bad_events.routes(usage, gate),
        *conflicts.routes(Conflicts(pool), gate),
        *meter_door.routes(MeterDoor(MeterEditing(editing_pool), actor_by_key(keyring.find))),
    ]
    return ReadSide(routes, pool, editing_pool)


async def run_reads(settings: MeteringSettings, clock: Clock) -> None:
    """Serve reads, and nothing else, until SIGTERM: no stream is consumed and nothing is written.

    The ledger's schema is the writer's to bring up; until it has, this process is not ready. NATS is for the
    heartbeat alone.

    Raises:
        ConfigurationError: The keyring is not fit to start with.
    """
    os.nice(settings.reads_nice)
    registry = new_registry()
    tracing = Tracing(service=SERVICE, instance=settings.instance, endpoint=settings.otlp_endpoint)
    keys = open_keyring(settings, settings.keyring_file, clock, registry)
    side = read_side(settings, keys, registry, clock)
    connection = Connection(settings, name="kgent-metering-reads")
    document = Health(SERVICE, settings.instance)
    postgres, seen = LastLook("not looked at yet"), {"schema": False}
    document.needed["keys"] = keys.check
    document.needed["postgres"] = postgres.check
    document.needed["schema"] = lambda: up(seen["schema"], "" if seen["schema"] else "the writer migrates it")
    document.useful["nats"] = lambda: up(connection.is_reading)
    await service.serve(
        settings=settings,
        health=document,
        app=application(
            [*health.routes(document), *side.routes],
            reads.EXCEPTION_HANDLERS,
            requests=RequestMetrics(registry),
        ),
        parts=[
            connection,
            *side.parts(),
            Upkeep(Round("look", _look_round(side.pool, postgres, seen))),
            Heartbeat(document, connection, clock, every_seconds=settings.heartbeat_seconds),
        ],
        registry=registry,
        operations=[contract.route()],
        tracing=tracing,
    )


def _look_round(pool: Pool, postgres: LastLook, seen: dict[str, bool]) -> Work:
    async def look() -> bool:
        with postgres.looking():
            seen["schema"] = await is_current(pool)
        return False

    return look
