"""The names on billing's dashboards; what they are set to is decided where it happens."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_LATENCY = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 300, 3600)


class Metrics:
    """Every metric of this process, in one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.processed = Counter(
            "kgents_stripe_webhooks_processed_total",
            "Stripe events by how they ended",
            ["outcome"],
            registry=registry,
        )
        for outcome in ("applied", "ignored", "duplicate", "quarantined", "dead"):
            self.processed.labels(outcome)
        self.types = Counter(
            "kgents_billing_events_total",
            "Stripe events by type; `other` for one we do nothing with",
            ["type"],
            registry=registry,
        )
        self.facts = Counter("kgents_billing_facts_total", "New facts", registry=registry)
        self.notes = Counter(
            "kgents_billing_notes_total",
            "What was remarkable: stale, ambiguous, gap, illegal_transition, unknown_status, ...",
            ["note"],
            registry=registry,
        )
        self.retries = Counter(
            "kgents_billing_retries_total", "Events to be tried again, by why", ["why"], registry=registry
        )
        self.accept_to_applied = Histogram(
            "kgents_billing_accept_to_applied_seconds",
            "From stored in the stream to committed",
            buckets=_LATENCY,
            registry=registry,
        )
        self.made_to_published = Histogram(
            "kgents_billing_fact_to_bus_seconds",
            "From a fact's commit to its place on the bus",
            buckets=_LATENCY,
            registry=registry,
        )
        self.pending = Gauge(
            "kgents_billing_stream_pending", "Stripe events not yet processed", registry=registry
        )
        self.owed = Gauge("kgents_billing_facts_owed", "Facts not yet on the bus", registry=registry)
        self.owed_age = Gauge(
            "kgents_billing_facts_owed_age_seconds", "Age of the oldest of them", registry=registry
        )
        self.quarantined = Gauge(
            "kgents_billing_quarantined", "Events whose tenant is not known (yet)", registry=registry
        )
        self.dead_letters = Gauge(
            "kgents_billing_dead_letters", "Dead letters that wait for an operator", registry=registry
        )
        self.to_refetch = Gauge(
            "kgents_billing_to_refetch",
            "Subscriptions whose last state only Stripe can tell",
            registry=registry,
        )
        self.circuit = Gauge(
            "kgents_stripe_circuit_state", "0 closed, 1 open, 2 half-open", registry=registry
        )
        self.refused_accounts = Counter(
            "kgents_billing_account_refused_total",
            "Questions to Stripe about a connected account that took its access back, or is none",
            ["account"],
            registry=registry,
        )
        self.recovered = Counter(
            "kgents_billing_recovered_events_total",
            "Events the poll found that no webhook had brought",
            registry=registry,
        )
        self.polled_at = Gauge(
            "kgents_billing_polled_to_timestamp_seconds",
            "Stripe's events are known up to here",
            registry=registry,
        )
        self.drift = Counter(
            "kgents_billing_drift_total",
            "Subscriptions that were otherwise at Stripe than here",
            registry=registry,
        )
