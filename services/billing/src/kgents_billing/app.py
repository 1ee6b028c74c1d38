"""Where billing's parts meet; nothing is decided here."""

from __future__ import annotations

from datetime import timedelta

import structlog
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from kgents_billing.handlers import reads
from kgents_billing.handlers.poll import Poll
from kgents_billing.handlers.process import Processor
from kgents_billing.handlers.publish import Teller
from kgents_billing.handlers.rounds import Quarantine, Refetch
from kgents_billing.handlers.stream import Worker
from kgents_billing.handlers.survey import Survey
from kgents_billing.metrics import Metrics
from kgents_billing.settings import BillingSettings
from kgents_billing.sinks.bus import Bus
from kgents_billing.sinks.store import Letters, Outbox, Store, Subscriptions
from kgents_billing.sinks.store.commit import RECONCILE_SUBSCRIPTIONS
from kgents_billing.sinks.store.cursors import Cursors
from kgents_billing.sinks.store.entries import Entries
from kgents_billing.sinks.store.tenants import Tenants
from kgents_billing.sinks.stripe_api import StripeApi
from kgents_common import database, health, service, streams, subjects
from kgents_common.application import application
from kgents_common.broker import Broker, Intake
from kgents_common.clock import Clock, SystemClock
from kgents_common.connection import Connection
from kgents_common.crash import CrashPoints
from kgents_common.dead_letters import Mirror
from kgents_common.errors import TransientError
from kgents_common.health import Health, Heartbeat, LastLook, circuit, up
from kgents_common.idempotency import Leases, NoLeases, RedisLeases
from kgents_common.keyring import open_keyring
from kgents_common.leadership import leadership
from kgents_common.publisher import Publisher
from kgents_common.redis_client import make_redis
from kgents_common.request_metrics import RequestMetrics
from kgents_common.resilience import CircuitBreaker
from kgents_common.streams.fill import EVERY_SECONDS, StreamFill
from kgents_common.telemetry import Tracing, new_registry
from kgents_common.upkeep import Round, Upkeep, Work
from kgents_common.watchdog import Ready, StallMetrics, Watchdog

SCHEMA_PACKAGE = "kgents_billing.schema"
LEASE_PREFIX = "idem:stripe:"
SURVEY_LOOK_SECONDS = 30.0

Pool = AsyncConnectionPool[AsyncConnection]
_log = structlog.get_logger()


async def run(settings: BillingSettings, clock: Clock | None = None) -> None:
    """Serve until SIGTERM.

    Raises:
        ConfigurationError: The keyring or the database's durability is not fit to start with.
    """
    clock = clock or SystemClock()
    registry = new_registry()
    keyring = open_keyring(settings, settings.keyring_file, clock, registry)
    crash_points = CrashPoints(settings.crash_at)
    metrics = Metrics(registry)
    tracing = Tracing(service="billing", instance=settings.instance, endpoint=settings.otlp_endpoint)
    pool = database.make_pool(settings.database_url, application="kgent-billing", max_size=12)
    connection = Connection(settings, name="kgent-billing")
    publisher = Publisher(connection)
    bus = Bus(connection, publisher)
    fill = StreamFill(connection, registry, clock)
    watchdog = Watchdog(connection, streams.BILLING, clock, metrics=StallMetrics(registry))
    stripe = make_stripe(settings, clock, metrics)
    store, letters = Store(pool, crash_points, keyring.has_tenant), Letters(pool)
    mirror = Mirror(letters, publisher, "billing", crash_points=crash_points)
    processor = Processor(store, stripe, options=settings.options(), metrics=metrics)
    teller = Teller(Outbox(pool, crash_points), bus, metrics)
    leases = _leases(settings)

    worker = Worker(
        processor,
        store,
        leases,
        epoch_of=watchdog.epoch_of,
        ack_wait=streams.BILLING.ack_wait,
        metrics=metrics,
        tracer=tracing.tracer,
        clock=clock,
        crash_points=crash_points,
        on_committed=teller.wake,
    )
    broker = Broker(settings, name="kgent-billing-consumer")
    watchdog.watch(broker.subscribe(streams.BILLING, worker.handle, batch_size=64))

    document = Health("billing", settings.instance)
    document.needed["consumer"] = watchdog.check
    document.useful["keys"] = keyring.check
    document.needed["nats"] = lambda: up(connection.is_reading)
    postgres = LastLook()
    document.needed["postgres"] = postgres.check
    document.useful["streams"] = fill.check
    document.useful["redis"] = lambda: circuit(leases.breaker if isinstance(leases, RedisLeases) else None)
    document.useful["stripe"] = lambda: circuit(stripe.breaker if stripe else None)

    grace = None if settings.grace_days is None else timedelta(days=settings.grace_days)
    app = application(
        [
            *health.routes(document),
            *reads.routes(
                reads.Reads(
                    Subscriptions(pool),
                    Entries(pool),
                    keyring,
                    clock,
                    grace,
                    livemode=settings.stripe_mode == "live",
                )
            ),
        ],
        reads.EXCEPTION_HANDLERS,
        requests=RequestMetrics(registry),
    )
    rounds = [
        Round("quarantine", Quarantine(letters, processor, clock).run),
        # Dead letters are in Postgres: their copies on the bus leave room for what is nowhere else.
        Round("mirror", fill.leaving_room(subjects.EVENTS, mirror.run)),
        Round("fill", fill.look, EVERY_SECONDS),
        Round("watch", _watch(pool, letters, watchdog, metrics, postgres)),
        Round("forget", _forget(Cursors(pool)), every_seconds=3600),
    ]
    if stripe is not None:
        tenants = Tenants(pool, keyring.has_tenant)
        rounds += _stripe_rounds(settings, pool, stripe, bus, watchdog, metrics, clock, store, tenants)
    parts: list[service.Part] = [
        connection,
        publisher,
        database.SchemaPool(pool, settings.database_url, package=SCHEMA_PACKAGE, schema="billing"),
        watchdog,
        Ready(connection, watchdog),
        Heartbeat(document, connection, clock, every_seconds=settings.heartbeat_seconds),
        teller,
        Upkeep(*rounds),
        broker,
        worker,
        Intake(broker),
    ]
    try:
        await service.serve(
            settings=settings, health=document, app=app, parts=parts, tracing=tracing, registry=registry
        )
    finally:
        if isinstance(leases, RedisLeases):
            await leases.close()
        if stripe is not None:
            await stripe.close()


def make_stripe(settings: BillingSettings, clock: Clock, metrics: Metrics) -> StripeApi | None:
    """Stripe's API; None where no key is configured: what only Stripe can tell then waits."""
    if settings.stripe_api_key is None:
        _log.warning("stripe.not_configured", hint="set STRIPE_API_KEY to ask where events do not tell")
        return None
    for account in settings.accounts:
        metrics.refused_accounts.labels(account)
    return StripeApi(
        settings.stripe_api_key.get_secret_value(),
        base_url=settings.stripe_api_base,
        clock=clock,
        per_second=settings.stripe_per_second,
        on_refused=lambda account: metrics.refused_accounts.labels(account).inc(),
        breaker=CircuitBreaker(
            "stripe",
            is_failure=lambda error: isinstance(error, TransientError),
            on_change=metrics.circuit.set,
            clock=clock,
        ),
    )


def _leases(settings: BillingSettings) -> Leases:
    if settings.redis_url is None:
        return NoLeases()
    return RedisLeases(make_redis(settings.redis_url), prefix=LEASE_PREFIX, length=streams.BILLING.ack_wait)


def _stripe_rounds(
    settings: BillingSettings,
    pool: Pool,
    stripe: StripeApi,
    bus: Bus,
    watchdog: Watchdog,
    metrics: Metrics,
    clock: Clock,
    store: Store,
    tenants: Tenants,
) -> list[Round]:
    cursors, subscriptions = Cursors(pool), Subscriptions(pool)
    poll = Poll(
        stripe,
        bus,
        cursors,
        first_days=settings.poll_first_days,
        metrics=metrics,
        clock=clock,
        accounts=tuple(settings.accounts),
    )
    survey = Survey(
        stripe,
        store,
        subscriptions,
        poll,
        metrics,
        tenants,
        accounts=tuple(settings.accounts),
        is_caught_up=bus.is_caught_up,
    )
    refetch = Refetch(stripe, store, subscriptions)

    async def poll_once() -> bool:
        async with leadership(pool, "billing.poll") as is_leader:
            if is_leader:
                await poll.run()
        return False

    async def survey_when_due() -> bool:
        last = await cursors.get(RECONCILE_SUBSCRIPTIONS)
        now = int(clock.now().timestamp())
        if last is not None and now - last < settings.survey_seconds:
            return False
        if watchdog.pending:
            return False  # an event that waits would tell what the survey would
        async with leadership(pool, "billing.survey") as is_leader:
            if is_leader:
                await survey.run()
                await cursors.replace(RECONCILE_SUBSCRIPTIONS, last, now)
        return False

    async def refetch_once() -> bool:
        async with leadership(pool, "billing.refetch") as is_leader:
            return is_leader and await refetch.run()

    async def mark_overdue() -> bool:
        await subscriptions.mark_overdue()
        return False

    return [
        Round("overdue", mark_overdue, every_seconds=60),
        Round("poll", poll_once, every_seconds=settings.poll_seconds),
        Round("survey", survey_when_due, every_seconds=min(SURVEY_LOOK_SECONDS, settings.survey_seconds)),
        Round("refetch", refetch_once, every_seconds=2),
    ]


def _watch(pool: Pool, letters: Letters, watchdog: Watchdog, metrics: Metrics, postgres: LastLook) -> Work:
    outbox, subscriptions = Outbox(pool, CrashPoints(None)), Subscriptions(pool)

    async def watch() -> bool:
        metrics.pending.set(watchdog.pending)
        with postgres.looking():
            owed, age = await outbox.depth()
            waiting, dead = await letters.counts()
            to_refetch = await subscriptions.count_to_refetch()
        metrics.owed.set(owed)
        metrics.owed_age.set(age)
        metrics.quarantined.set(waiting)
        metrics.dead_letters.set(dead)
        metrics.to_refetch.set(to_refetch)
        return False

    return watch


def _forget(cursors: Cursors) -> Work:
    async def forget() -> bool:
        await cursors.forget()
        return False

    return forget
