"""Where the parts of the process meet that lets agents connect to NATS; nothing is decided here."""

from __future__ import annotations

from kgents_api.handlers.agents import AgentMetrics, Cutter, Responder
from kgents_api.handlers.authentication import Authentication
from kgents_api.model.agent_pace import AgentPace
from kgents_api.settings import AgentsSettings
from kgents_api.sinks.sessions import RedisSessions
from kgents_api.sinks.shared_redis import SharedRedis
from kgents_common import health, service
from kgents_common.access import seeds
from kgents_common.access.users import CUTTER_USER, RESPONDER_USER
from kgents_common.application import application
from kgents_common.clock import SystemClock
from kgents_common.connection import Connection
from kgents_common.health import Check, Health, Status
from kgents_common.keyring import open_keyring
from kgents_common.telemetry import Tracing, new_registry
from kgents_common.upkeep import Round, Upkeep


async def run(settings: AgentsSettings) -> None:
    """Serve until SIGTERM.

    Raises:
        ConfigurationError: The keyring or a seed is not fit to start with, or the port is taken.
    """
    clock = SystemClock()
    registry = new_registry()
    metrics = AgentMetrics(registry)
    tracing = Tracing(service="agents", instance=settings.instance, endpoint=settings.otlp_endpoint)
    redis = SharedRedis(settings.redis_url) if settings.redis_url else None
    kept = RedisSessions(redis) if redis else None
    keyring = open_keyring(settings, settings.keyring_file, clock, registry)
    asked = Connection(
        settings.as_user(RESPONDER_USER.inbox_prefix, settings.responder_seed_file), name="kgent-agents"
    )
    cutting = Connection(
        settings.as_user(CUTTER_USER.inbox_prefix, settings.cutter_seed_file), name="kgent-agents-cutter"
    )
    pace = AgentPace(
        settings.rate_limit_events_per_second, settings.rate_limit_bytes_per_second, settings.pause_seconds
    )
    responder = Responder(
        asked,
        Authentication(keyring, clock, kept),
        kept,
        issuer=seeds.read(settings.issuer_seed_file),
        pace=pace,
        clock=clock,
        metrics=metrics,
    )
    cutter = Cutter(cutting, keyring, kept, pace=pace, clock=clock, metrics=metrics)
    document = Health("agents", settings.instance)
    document.needed["responder"] = lambda: (
        Check(Status.OK)
        if responder.is_listening and asked.is_reading
        else Check(Status.DOWN, "hears no question")
    )
    document.needed["keys"] = keyring.check
    document.useful["cutter"] = lambda: health.up(cutting.is_reading)
    if redis:
        document.useful["redis"] = lambda: health.circuit(redis.breaker)
    await service.serve(
        settings=settings,
        health=document,
        app=application(health.routes(document), {}),
        parts=[
            asked,
            cutting,
            *([redis] if redis else []),
            responder,
            Upkeep(Round("agents.cutter", cutter.look, settings.cut_seconds)),
        ],
        tracing=tracing,
        registry=registry,
    )
