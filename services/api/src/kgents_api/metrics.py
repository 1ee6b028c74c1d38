"""The names on the api's dashboards; what they are set to is decided where it happens."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_LATENCY = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


class Metrics:
    """Every metric of this process, in one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "kgents_api_requests_total", "Requests answered", ["route", "method", "code"], registry=registry
        )
        self.latency = Histogram(
            "kgents_api_request_latency_seconds",
            "From the request's head to the answer's end",
            ["route"],
            buckets=_LATENCY,
            registry=registry,
        )
        self.published = Counter(
            "kgents_nats_messages_published_total", "Events JetStream acknowledged", registry=registry
        )
        self.duplicates = Counter(
            "kgents_nats_duplicates_total", "Acknowledged events the stream already held", registry=registry
        )
        self.conflicts = Counter(
            "kgents_api_conflicts_total",
            "Events whose receipt told of another one under the same identity",
            registry=registry,
        )
        self.publish_errors = Counter(
            "kgents_nats_publish_errors_total", "Events that could not be made durable", registry=registry
        )
        self.circuit = Gauge("kgents_nats_circuit_state", "0 closed, 1 open, 2 half-open", registry=registry)
        self.in_flight = Gauge(
            "kgents_nats_publishes_in_flight", "Events sent and not yet acknowledged", registry=registry
        )
        self.spool_depth = Gauge(
            "kgents_nats_fallback_queue_depth", "Events in the spool, waiting", registry=registry
        )
        self.spool_bytes = Gauge(
            "kgents_nats_fallback_queue_bytes", "What the spool holds, of what it may", registry=registry
        )
        self.spool_max_bytes = Gauge(
            "kgents_nats_fallback_queue_max_bytes",
            "What the spool may hold; 0 where there is none",
            registry=registry,
        )
        self.spool_refused = Gauge(
            "kgents_nats_fallback_queue_refused",
            "Events in the spool that the stream can never take: kept, for an operator",
            registry=registry,
        )
        self.spool_replayed = Counter(
            "kgents_nats_fallback_replayed_total",
            "Events of the spool that the stream has taken",
            registry=registry,
        )
        self.redis_circuit = Gauge(
            "kgents_redis_circuit_state", "0 closed, 1 open, 2 half-open", registry=registry
        )
        self.rate_unanswered = Counter(
            "kgents_api_rate_limit_unanswered_total",
            "Questions to the rate limit's buckets that Redis did not answer: requests passed",
            registry=registry,
        )
        self.worker_silent = Gauge(
            "kgents_worker_silent_seconds",
            "Since a worker's last heartbeat, or since one could be heard; NaN while none could",
            ["worker"],
            registry=registry,
        )
        self.refused = Counter(
            "kgents_api_events_refused_total", "Requests refused, by why", ["reason"], registry=registry
        )
