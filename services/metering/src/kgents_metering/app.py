"""Where metering's parts meet; nothing is decided here."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import structlog
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from kgents_common import database, health, service, streams, subjects
from kgents_common.application import application
from kgents_common.broker import Broker, Intake
from kgents_common.clock import Clock, SystemClock
from kgents_common.connection import Connection
from kgents_common.crash import CrashPoints
from kgents_common.dead_letters import DeadLetter, DeadLetters, Mirror
from kgents_common.health import Health, Heartbeat, LastLook, circuit, up
from kgents_common.keyring import open_keyring
from kgents_common.publisher import Publisher
from kgents_common.request_metrics import RequestMetrics
from kgents_common.settings import process_id
from kgents_common.streams.fill import EVERY_SECONDS, StreamFill
from kgents_common.telemetry import Tracing, new_registry
from kgents_common.upkeep import Round, Upkeep, Work
from kgents_common.watchdog import Ready, StallMetrics, Watchdog
from kgents_metering.app_reads import read_side, run_reads
from kgents_metering.handlers import reads
from kgents_metering.handlers.deliver import Deliverer
from kgents_metering.handlers.meter_check import MeterCheck
from kgents_metering.handlers.proof import Prover
from kgents_metering.handlers.reads import contract
from kgents_metering.handlers.restored import RestoreGuard
from kgents_metering.handlers.stream import Applier
from kgents_metering.handlers.trim import Trimmer
from kgents_metering.metrics import Metrics
from kgents_metering.model.event import Dead, Event, Message, classify, classify_fact
from kgents_metering.settings import MeteringSettings
from kgents_metering.sinks.ledger import meters as ledger_meters
from kgents_metering.sinks.ledger import schema
from kgents_metering.sinks.ledger.apply import Ledger
from kgents_metering.sinks.ledger.gaps import gaps
from kgents_metering.sinks.ledger.outbox import Outbox
from kgents_metering.sinks.ledger.settlement import Settlement
from kgents_metering.sinks.meters_file import load_meters
from kgents_metering.sinks.openmeter import OpenMeter

TARGET = "openmeter"
GUARD_SECONDS = 60.0
TRIM_SECONDS = 600.0
METERS_SECONDS = 15.0
# How often it is looked whether a comparison is due.
PROOF_SECONDS = 60.0

Pool = AsyncConnectionPool[AsyncConnection]
Classify = Callable[[Message], Event | Dead]
_log = structlog.get_logger()


class LedgerPool(database.SchemaPool):
    """The ledger's pool as a part: before anything else runs, the meters are looked at, too."""

    def __init__(self, pool: Pool, url: str, meters: MeterCheck) -> None:
        super().__init__(pool, url, package=schema.PACKAGE, schema=schema.NAME)
        self._meters = meters

    async def start(self) -> None:
        """Migrate, open; a ledger that never had meters gets those of the file."""
        await super().start()
        await self._meters.begin()


async def run(settings: MeteringSettings, clock: Clock | None = None) -> None:
    """Serve until SIGTERM what the role asks for.

    Raises:
        ConfigurationError: The meters, the keyring or the database's durability are not fit to start with.
    """
    clock = clock or SystemClock()
    if settings.role == "reads":
        await run_reads(settings, clock)
    else:
        await _run_writer(settings, clock)


async def _run_writer(settings: MeteringSettings, clock: Clock) -> None:
    declared = load_meters(settings.meters_file)
    crash_points = CrashPoints(settings.crash_at)
    registry = new_registry()
    metrics = Metrics(registry)
    tracing = Tracing(service="metering", instance=settings.instance, endpoint=settings.otlp_endpoint)
    pool = database.make_pool(settings.database_url, application="kgent-metering")
    connection = Connection(settings, name="kgent-metering")
    publisher = Publisher(connection)
    stalls = StallMetrics(registry)
    watchdog = Watchdog(connection, streams.METERING, clock, metrics=stalls)
    facts_watchdog = Watchdog(connection, streams.METERING_BILLING_FACTS, clock, metrics=stalls)
    mirror = Mirror(
        DeadLetters(pool, schema.NAME, DeadLetter), publisher, "metering", note_open=metrics.dead_letters.set
    )
    guard = RestoreGuard(pool, connection, metrics)
    meters = MeterCheck(pool, declared)
    fill = StreamFill(connection, registry, clock)

    def ledger_of(stream: str, floor: Callable[[], int] | None = None) -> Ledger:
        target = TARGET if settings.openmeter_base_url else None
        return Ledger(pool, target=target, stream=stream, crash_points=crash_points, floor=floor)

    deliverer, openmeter = _delivery(settings, pool, metrics, tracing, clock, crash_points)

    def applier_of(ledger: Ledger, watched: Watchdog, classify: Classify) -> Applier:
        return Applier(
            ledger,
            epoch_of=watched.epoch_of,
            ack_wait=streams.METERING.ack_wait,
            metrics=metrics,
            tracer=tracing.tracer,
            clock=clock,
            crash_points=crash_points,
            classify=classify,
            on_applied=deliverer.wake if deliverer else lambda: None,
        )

    applier = applier_of(ledger_of(streams.METERING.stream), watchdog, classify)

    def facts_floor() -> int:
        """While the ledger lacks facts, its position stays where they are missing."""
        return 0 if guard.is_behind(streams.METERING_BILLING_FACTS) else facts_watchdog.floor

    facts_ledger = ledger_of(streams.METERING_BILLING_FACTS.stream, facts_floor)
    facts = applier_of(facts_ledger, facts_watchdog, classify_fact)
    broker = Broker(settings, name="kgent-metering-consumer")
    watchdog.watch(broker.subscribe(streams.METERING, applier.handle, batch_size=settings.apply_batch))
    facts_watchdog.watch(broker.subscribe(streams.METERING_BILLING_FACTS, facts.handle))

    document = Health("metering", settings.instance)
    document.needed["consumer"] = watchdog.check
    document.needed["billing_facts"] = facts_watchdog.check
    document.needed["nats"] = lambda: up(connection.is_reading)
    document.useful["openmeter"] = lambda: circuit(deliverer.breaker if deliverer else None)
    document.useful["ledger"] = guard.check
    document.useful["meters"] = meters.check
    document.useful["streams"] = fill.check
    postgres = LastLook()
    document.needed["postgres"] = postgres.check

    side = None
    if settings.role == "all":
        keys = open_keyring(settings, settings.keyring_file, clock, registry)
        document.useful["keys"] = keys.check
        side = read_side(settings, keys, registry, clock)
    app = application(
        [
            *health.routes(document),
            *(side.routes if side else ()),
        ],
        reads.EXCEPTION_HANDLERS,
        requests=RequestMetrics(registry),
    )
    trim: list[Round] = []
    if settings.raw_days is not None:
        keep = timedelta(days=settings.raw_days)
        trimmer = Trimmer(pool, connection, keep=keep, clock=clock, metrics=metrics)
        trim = [Round("trim", trimmer.run, TRIM_SECONDS)]
    upkeep = Upkeep(
        *trim,
        *_proof(settings, pool, openmeter, clock, metrics),
        Round("backfill", _backfill_round(pool)),
        Round("meters", meters.look, METERS_SECONDS),
        Round("restored", guard.look, GUARD_SECONDS),
        # Dead letters are in the ledger: their copies on the bus leave room for what is nowhere else.
        Round("mirror", fill.leaving_room(subjects.EVENTS, mirror.run)),
        Round("fill", fill.look, EVERY_SECONDS),
        Round("watch", _watch_round(pool, watchdog, metrics, postgres)),
    )
    parts: list[service.Part] = [
        connection,
        publisher,
        LedgerPool(pool, settings.database_url, meters),
        *(side.parts() if side else []),
        watchdog,
        facts_watchdog,
        Ready(connection, watchdog, facts_watchdog),
        guard,
        Heartbeat(document, connection, clock, every_seconds=settings.heartbeat_seconds),
        upkeep,
        broker,
        applier,
        facts,
    ]
    if deliverer is not None:
        parts.append(deliverer)
    parts.append(Intake(broker))
    try:
        await service.serve(
            settings=settings,
            health=document,
            app=app,
            parts=parts,
            tracing=tracing,
            registry=registry,
            operations=[contract.route()] if side else [],
        )
    finally:
        if openmeter is not None:
            await openmeter.close()


def _delivery(
    settings: MeteringSettings,
    pool: Pool,
    metrics: Metrics,
    tracing: Tracing,
    clock: Clock,
    crash_points: CrashPoints,
) -> tuple[Deliverer, OpenMeter] | tuple[None, None]:
    """The delivery to OpenMeter; none where no OpenMeter is configured: the ledger then stands alone."""
    if settings.openmeter_base_url is None:
        _log.warning("openmeter.not_configured", hint="set OPENMETER_BASE_URL to deliver what is counted")
        return None, None
    key = settings.openmeter_api_key
    openmeter = OpenMeter(
        base_url=settings.openmeter_base_url,
        token=key.get_secret_value() if key else None,
        version=settings.openmeter_version,
        clock=clock,
        timeout=timedelta(seconds=settings.openmeter_timeout_seconds),
    )
    deliverer = Deliverer(
        Outbox(pool, TARGET),
        openmeter,
        pool=pool,
        in_flight=settings.deliver_in_flight,
        dedupe_window=timedelta(seconds=settings.openmeter_dedupe_seconds),
        holder=process_id(),
        metrics=metrics,
        tracer=tracing.tracer,
        clock=clock,
        crash_points=crash_points,
    )
    return deliverer, openmeter


def _proof(
    settings: MeteringSettings, pool: Pool, openmeter: OpenMeter | None, clock: Clock, metrics: Metrics
) -> list[Round]:
    """The round that compares ledger and OpenMeter; none where there is no OpenMeter, or nobody wants it."""
    if openmeter is None or not settings.reconcile_seconds:
        return []
    prover = Prover(
        pool,
        openmeter,
        Settlement(pool, TARGET),
        every=timedelta(seconds=settings.reconcile_seconds),
        clock=clock,
        metrics=metrics,
    )
    return [Round("reconcile", prover.look, PROOF_SECONDS)]


def _backfill_round(pool: Pool) -> Work:
    async def backfill() -> bool:
        return await ledger_meters.backfill(pool) > 0

    return backfill


def _watch_round(pool: Pool, watchdog: Watchdog, metrics: Metrics, postgres: LastLook) -> Work:
    async def watch() -> bool:
        metrics.stream_pending.set(watchdog.pending)
        with postgres.looking():
            found = await gaps(pool, streams.METERING.stream)
        metrics.gap_events.set(sum(last - first + 1 for _, first, last in found))
        return False

    return watch
