"""The names on metering's dashboards; what they are set to is decided where it happens."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_LATENCY = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """Every metric of this process, in one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.events = Counter(
            "kgents_metering_events_total",
            "Messages of AGENTESE by how they ended",
            ["outcome"],
            registry=registry,
        )
        for outcome in ("accepted", "duplicate", "conflict", "dead", "redelivered"):
            self.events.labels(outcome)
        self.invalid = Counter(
            "kgents_metering_invalid_total",
            "Counted events without a usable value for a meter",
            ["code"],
            registry=registry,
        )
        self.apply_seconds = Histogram(
            "kgents_metering_apply_seconds",
            "One batch, from queue to commit",
            buckets=_LATENCY,
            registry=registry,
        )
        self.accept_to_applied = Histogram(
            "kgents_metering_accept_to_applied_seconds",
            "From stored in the stream to committed in the ledger, of each batch's oldest message",
            buckets=_LATENCY,
            registry=registry,
        )
        self.apply_retries = Counter(
            "kgents_metering_apply_retries_total",
            "Batches tried again, Postgres being away",
            registry=registry,
        )
        self.stream_pending = Gauge(
            "kgents_metering_stream_pending", "Messages of AGENTESE not yet applied", registry=registry
        )
        self.dead_letters = Gauge(
            "kgents_metering_dead_letters", "Dead letters that wait for an operator", registry=registry
        )
        self.ledger_behind = Gauge(
            "kgents_metering_ledger_behind",
            "1 where the ledger lacks what this consumer acknowledged: it came back from a dump",
            ["consumer"],
            registry=registry,
        )
        self.trimmed = Counter(
            "kgents_metering_raw_trimmed_total",
            "Messages of AGENTESE that left it, applied, archived and old enough",
            registry=registry,
        )
        self.gap_events = Gauge(
            "kgents_metering_gap_events", "Sequences missing between applied ones", registry=registry
        )
        self.reconciled = Gauge(
            "kgents_metering_reconciled_timestamp_seconds",
            "When ledger and OpenMeter were compared last; at first, when this process began to wait for it;"
            " 0 where nothing is compared",
            registry=registry,
        )
        self.differences = Gauge(
            "kgents_metering_reconcile_differences",
            "Hours of a meter and a tenant on which ledger and OpenMeter did not agree, the last time",
            registry=registry,
        )
        self.missing = Gauge(
            "kgents_metering_reconcile_missing_events",
            "Events that OpenMeter did not have the last time, and that are not owed to it again",
            registry=registry,
        )
        self.buffered = Gauge(
            "kgents_openmeter_events_buffered", "Events owed to OpenMeter (the outbox)", registry=registry
        )
        self.poison = Gauge(
            "kgents_openmeter_events_poison", "Events OpenMeter refuses, for an operator", registry=registry
        )
        self.oldest_age = Gauge(
            "kgents_openmeter_oldest_age_seconds", "Age of the oldest event owed", registry=registry
        )
        self.sent = Counter("kgents_openmeter_events_sent_total", "Events OpenMeter took", registry=registry)
        self.verified = Counter(
            "kgents_openmeter_events_verified_total",
            "Events found already there before a late resend",
            registry=registry,
        )
        self.flush_errors = Counter(
            "kgents_openmeter_flush_errors_total",
            "Batches that were not taken, by what was done",
            ["verdict"],
            registry=registry,
        )
        self.flush_latency = Histogram(
            "kgents_openmeter_flush_latency_seconds",
            "One request to OpenMeter",
            buckets=_LATENCY,
            registry=registry,
        )
        self.circuit = Gauge(
            "kgents_openmeter_circuit_state", "0 closed, 1 open, 2 half-open", registry=registry
        )
        self.paused = Gauge(
            "kgents_openmeter_paused",
            "1 while OpenMeter refuses our credentials or address",
            registry=registry,
        )
        self.leading = Gauge(
            "kgents_openmeter_delivery_leader", "1 in the process that delivers", registry=registry
        )


class ReadMetrics:
    """What the reads tell of themselves."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.reads = Counter(
            "kgents_metering_reads_total", "Reads by how they ended", ["outcome"], registry=registry
        )
        for outcome in ("answered", "refused", "busy", "gone", "failed"):
            self.reads.labels(outcome)
        self.seconds = Histogram(
            "kgents_metering_read_seconds",
            "One read, from the credentials to the last byte",
            buckets=_LATENCY,
            registry=registry,
        )
        self.running = Gauge("kgents_metering_reads_running", "Reads under way", registry=registry)
        self.waiting = Gauge(
            "kgents_metering_reads_waiting", "Reads that wait for a place of their tenant", registry=registry
        )
