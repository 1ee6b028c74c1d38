"""Where the api's parts meet; nothing is decided here."""

from __future__ import annotations

from datetime import timedelta
from functools import partial

from prometheus_client import CollectorRegistry
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kgents_api.handlers import live, openapi, saas, sessions, stripe_webhooks, usage
from kgents_api.handlers.authentication import Authentication
from kgents_api.handlers.events import Events, as_openmeter
from kgents_api.handlers.instrument import Instrument
from kgents_api.handlers.intake import Limits
from kgents_api.handlers.live import Live, LiveLimits
from kgents_api.handlers.live_client import LiveMetrics
from kgents_api.handlers.refusal import Refused
from kgents_api.handlers.saas import HeartbeatFollower, Saas
from kgents_api.handlers.sessions import SessionDoor
from kgents_api.handlers.stripe_webhooks import HELD_WEBHOOK_BYTES, StripeWebhooks, WebhookMetrics
from kgents_api.handlers.usage import UsageForward
from kgents_api.metrics import Metrics
from kgents_api.model.rate_limit import Quota, RateLimiter
from kgents_api.model.saas import Heartbeats
from kgents_api.model.tenant_limits import FairShare, Limit, TenantLimits, units
from kgents_api.settings import BURST_SECONDS, ApiSettings
from kgents_api.sinks.rate_buckets import RedisBuckets
from kgents_api.sinks.sessions import RedisSessions
from kgents_api.sinks.shared_redis import SharedRedis
from kgents_api.sinks.stream import StreamSink
from kgents_api.sinks.stripe_secrets import WebhookSecrets
from kgents_api.sources.live import AgenteseLog
from kgents_common import health, service, usage_contract
from kgents_common.application import application
from kgents_common.clock import Clock, SystemClock
from kgents_common.connection import Connection
from kgents_common.health import Check, Health, Heartbeat, Status
from kgents_common.keyring import open_keyring
from kgents_common.publisher import MessageIds, Publisher, Spool, SpoolingPublisher
from kgents_common.resilience import CircuitBreaker
from kgents_common.streams.fill import EVERY_SECONDS, StreamFill
from kgents_common.telemetry import Tracing, new_registry
from kgents_common.upkeep import Round, Upkeep

# After NATS is back the door must not wait long to notice; asking costs nothing while it is away.
EVENTS_PREFIX, BYTES_PREFIX, STORED_PREFIX = "rate:events:", "rate:bytes:", "stored:bytes:"
LONGEST_REST = timedelta(seconds=2)


async def run(settings: ApiSettings, clock: Clock | None = None) -> None:
    """Serve until SIGTERM.

    Raises:
        ConfigurationError: The keyring is not fit to start with, or the port is taken.
    """
    clock = clock or SystemClock()
    registry = new_registry()
    metrics = Metrics(registry)
    tracing = Tracing(service="api", instance=settings.instance, endpoint=settings.otlp_endpoint)
    redis = (
        SharedRedis(settings.redis_url, on_change=metrics.redis_circuit.set) if settings.redis_url else None
    )
    kept = RedisSessions(redis) if redis else None
    keys = open_keyring(settings, settings.keyring_file, clock, registry)
    authentication = Authentication(keys, clock, kept)
    connection = Connection(settings, name="kgent-api")
    # What is read for others comes over a connection of its own: it can hold up no publish.
    reading = Connection(settings, name="kgent-api-reading")
    publisher = Publisher(
        connection,
        timeout=timedelta(seconds=settings.publish_timeout_seconds),
        breaker=CircuitBreaker(
            "nats",
            threshold=20,
            window=40,
            longest_rest=LONGEST_REST,
            on_change=metrics.circuit.set,
            clock=clock,
        ),
    )
    metrics.in_flight.set_function(lambda: publisher.in_flight)
    spooling = _spooling(settings, publisher, connection, metrics, clock)
    secret = settings.message_id_secret
    ids = MessageIds(secret.get_secret_value().encode() if secret else None)
    sink = StreamSink(spooling or publisher, metrics, ids)
    limits = Limits(settings.max_event_bytes, settings.max_batch_bytes, settings.max_batch_events)

    document = Health("api", settings.instance)
    (document.needed if spooling is None else document.useful)["nats"] = lambda: health.publishing(
        connection, publisher.breaker
    )
    if spooling is not None:
        document.needed["spool"] = lambda: _spool(spooling.spool)
    document.useful["live"] = lambda: health.up(reading.is_reading)
    fill = StreamFill(connection, registry, clock)
    document.useful["streams"] = fill.check
    document.needed["keys"] = keys.check
    document.useful["redis"] = lambda: health.circuit(redis.breaker if redis else None)
    limiter = _limiter(settings, redis, metrics, clock)
    share = FairShare(settings.max_held_bytes)
    events = Events(authentication, sink, share, limits=limits, clock=clock, limiter=limiter)
    ingest = Events(
        authentication, sink, share, limits=limits, clock=clock, limiter=limiter, answer=as_openmeter
    )
    webhooks = _webhooks(settings, publisher, registry, clock)
    streams = _live(settings, authentication, reading, registry)
    heartbeats = Heartbeats.every(settings.heartbeat_seconds, settings.expected_workers)
    _tell_silences(metrics, heartbeats, clock)
    forward = UsageForward(settings.reads_url, registry) if settings.reads_url else None
    system = Saas(document, heartbeats, clock)
    described = {
        **live.openapi_paths(),
        **saas.openapi_paths(),
        **(sessions.openapi_paths() if kept else {}),
        **(stripe_webhooks.openapi_paths() if webhooks else {}),
        **(usage_contract.openapi_paths() if forward else {}),
    }
    routes = [
        Route("/v1/events", events, methods=["POST"]),
        Route("/api/v1/events", ingest, methods=["POST"]),
        *live.routes(streams),
        *health.routes(document),
        *saas.routes(system, is_for_operators=False),
        *(sessions.routes(SessionDoor(authentication, kept, clock)) if kept else ()),
        *(stripe_webhooks.routes(webhooks) if webhooks else ()),
        *(usage.routes(forward) if forward else ()),
    ]
    app = Instrument(
        application(routes, {Refused: _refused}),
        direct={
            ("POST", "/v1/events"): events,
            ("POST", "/api/v1/events"): ingest,
            ("GET", live.PATH): streams,
            **({("POST", stripe_webhooks.PATH): webhooks} if webhooks else {}),
        },
        routes={route.path: route.path for route in routes if isinstance(route, Route)},
        metrics=metrics,
        tracer=tracing.tracer if settings.otlp_endpoint else None,
        max_concurrency=settings.max_concurrency,
        unlimited=[live.PATH, *(usage_contract.ROUTES if forward else ())],
    )
    await service.serve(
        settings=settings,
        health=document,
        app=app,
        parts=[
            connection,
            reading,
            publisher,
            *([spooling] if spooling else []),
            *([redis] if redis else []),
            *([forward] if forward else []),
            HeartbeatFollower(reading, heartbeats, clock),
            Upkeep(Round("fill", fill.look, EVERY_SECONDS)),
            Heartbeat(document, connection, clock, every_seconds=settings.heartbeat_seconds),
        ],
        tracing=tracing,
        registry=registry,
        operations=[*saas.routes(system, is_for_operators=True), *openapi.routes(limits, described)],
        before_drain=streams.drain,
        stalled_seconds=settings.stalled_client_seconds,
    )


def _spooling(
    settings: ApiSettings, publisher: Publisher, connection: Connection, metrics: Metrics, clock: Clock
) -> SpoolingPublisher | None:
    """The publisher with a spool behind it; none where the operator gives it no directory."""
    if settings.spool_directory is None:
        return None
    spool = Spool(settings.spool_directory, settings.spool_max_bytes)
    metrics.spool_depth.set_function(lambda: spool.depth)
    metrics.spool_bytes.set_function(lambda: spool.bytes)
    metrics.spool_max_bytes.set(settings.spool_max_bytes)
    metrics.spool_refused.set_function(lambda: spool.refused)
    return SpoolingPublisher(publisher, connection, spool, clock, on_replayed=metrics.spool_replayed.inc)


def _tell_silences(metrics: Metrics, heartbeats: Heartbeats, clock: Clock) -> None:
    def silent_seconds(worker: str) -> float:
        return heartbeats.silent_seconds(worker, clock.monotonic())

    for worker in heartbeats.expected:
        metrics.worker_silent.labels(worker).set_function(partial(silent_seconds, worker))


def _limiter(
    settings: ApiSettings, redis: SharedRedis | None, metrics: Metrics, clock: Clock
) -> TenantLimits | None:
    """The tenants' limits; none without Redis."""
    if redis is None:
        return None

    def limiter(quota: Quota, prefix: str) -> RateLimiter:
        buckets = RedisBuckets(redis, quota, clock, unanswered=metrics.rate_unanswered, prefix=prefix)
        return RateLimiter(buckets, quota, clock)

    limits: list[Limit] = []
    rate = settings.rate_limit_events_per_second
    if rate:
        quota = Quota(rate, rate * BURST_SECONDS)
        limits.append(Limit(limiter(quota, EVENTS_PREFIX), f"may send {rate} events a second"))
    size = settings.rate_limit_bytes_per_second
    if size:
        quota = Quota(units(size), units(size) * BURST_SECONDS)
        says = f"may send {size} bytes of events a second"
        limits.append(Limit(limiter(quota, BYTES_PREFIX), says, in_bytes=True))
    stored = settings.tenant_stored_bytes
    if stored:
        # Half at once and half in the time that messages stay: never more than the whole is in the stream.
        half = units(stored) // 2
        quota = Quota(half, half, seconds=settings.stored_days * 86400)
        says = f"may have {stored} bytes of events in the stream"
        limits.append(Limit(limiter(quota, STORED_PREFIX), says, in_bytes=True))
    return TenantLimits(limits) if limits else None


def _live(
    settings: ApiSettings,
    authentication: Authentication,
    connection: Connection,
    registry: CollectorRegistry,
) -> Live:
    """The door for live streams."""
    log = AgenteseLog(connection, tells_times=not settings.live_plain_ids)
    limits = LiveLimits(
        settings.live_max_clients, settings.live_max_clients_per_tenant, settings.live_heartbeat_seconds
    )
    return Live(authentication, log, limits=limits, metrics=LiveMetrics(registry))


def _webhooks(
    settings: ApiSettings, publisher: Publisher, registry: CollectorRegistry, clock: Clock
) -> StripeWebhooks | None:
    """The door for Stripe; none where no secret is configured."""
    inline, path = settings.stripe_webhook_secrets, settings.stripe_webhook_secrets_file
    if inline is None and path is None:
        return None
    secrets = WebhookSecrets(inline.get_secret_value() if inline else None, path, clock)
    return StripeWebhooks(
        secrets,
        publisher,
        share=FairShare(HELD_WEBHOOK_BYTES),
        metrics=WebhookMetrics(registry),
        clock=clock,
        mode=settings.stripe_mode,
    )


def _spool(spool: Spool) -> Check:
    """Down once it is full: then nothing more can be made durable while NATS is away."""
    if spool.is_full:
        return Check(Status.DOWN, "full")
    if spool.refused:
        return Check(Status.DEGRADED, f"{spool.refused} events that the stream can never take")
    return Check(Status.DEGRADED, f"{spool.depth} events wait") if spool.depth else Check(Status.OK)


async def _refused(_: Request, error: Refused) -> Response:
    return error.response
