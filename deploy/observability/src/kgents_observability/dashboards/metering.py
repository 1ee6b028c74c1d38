"""Metering and the bill: is everything counted once, and does OpenMeter have it."""

from __future__ import annotations

from kgents_observability.dashboards.panels import Board, Panel, Query, Row, number, quantiles, rate

BOARD = Board(
    "kgents-metering",
    "kgents / Metering and the bill",
    "For whoever answers for the numbers: counted, late, contradicted, unreadable, owed.",
    (
        Row(
            "Is the bill right?",
            (
                number(
                    "Oldest owed to OpenMeter",
                    "How late the bill is. Past a quarter of an hour look at the circuit and at OpenMeter's answers.",
                    "s",
                    "max(kgents_openmeter_oldest_age_seconds)",
                    ("metering", "OpenMeterOwesOld"),
                    alarming=900,
                ),
                number(
                    "Missing sequences",
                    "Messages between counted ones that were never seen. Anything but nought: replay from the archive.",
                    "short",
                    "max(kgents_metering_gap_events)",
                    ("metering", "MeteringGaps"),
                    alarming=1,
                ),
                number(
                    "Dead letters",
                    "They count for nobody until you replay or discard them.",
                    "short",
                    "max(kgents_metering_dead_letters)",
                    ("metering", "MeteringDeadLetters"),
                    alarming=1,
                ),
                number(
                    "Refused by OpenMeter",
                    "Here and not there. Mend and retry, or forgo on record.",
                    "short",
                    "max(kgents_openmeter_events_poison)",
                    ("metering", "OpenMeterRefusesEvents"),
                    alarming=1,
                ),
                number(
                    "Conflicts of the last day",
                    "An id that came again with other contents: tell its producer.",
                    "short",
                    'sum(increase(kgents_metering_events_total{outcome="conflict"}[1d]))',
                    ("metering", "MeteringConflicts"),
                    alarming=1,
                ),
                number(
                    "Ledger behind its consumers",
                    "1 after the ledger came back from a dump: run `kgents-metering redeliver`.",
                    "none",
                    "max(kgents_metering_ledger_behind) or vector(0)",
                    ("metering", "LedgerBehind"),
                    alarming=1,
                ),
            ),
        ),
        Row(
            "Proved against OpenMeter",
            (
                number(
                    "Hours that differ",
                    "Of two days, by tenant and meter, at the last comparison. Anything but nought: `kgents-metering reconcile`.",
                    "short",
                    "max(kgents_metering_reconcile_differences)",
                    ("metering", "ReconciliationGap"),
                    alarming=1,
                    width=8,
                ),
                number(
                    "Events that OpenMeter lacks",
                    "Of those hours, and not owed to it again yet. `reconcile --repair` owes them again.",
                    "short",
                    "max(kgents_metering_reconcile_missing_events)",
                    ("metering", "ReconciliationGap"),
                    alarming=1,
                    width=8,
                ),
                number(
                    "Since the last comparison",
                    "An hour is usual. Above six, nobody knows whether the bill is right: see metering's log.",
                    "s",
                    "time() - (max(kgents_metering_reconciled_timestamp_seconds) > 0)",
                    ("metering", "ReconciliationOld"),
                    alarming=21600,
                    width=8,
                ),
            ),
        ),
        Row(
            "Counting",
            (
                Panel(
                    "Messages by how they ended",
                    "Each ends once. `redelivered`: a worker died or Postgres was away. `dead` and `conflict` have alerts.",
                    "cps",
                    (Query(rate("kgents_metering_events_total", by="outcome"), "{{outcome}}"),),
                    ("metering", "MeteringStalled"),
                ),
                Panel(
                    "Waiting to be counted",
                    "Safe in the stream. Grows without end: Postgres, or one writer too few.",
                    "short",
                    (Query("max(kgents_metering_stream_pending)", "waiting"),),
                    ("metering", "MeteringBehind"),
                ),
                Panel(
                    "From stored to counted",
                    "Of each batch's oldest message. Above ten seconds the freshness promise suffers.",
                    "s",
                    quantiles("kgents_metering_accept_to_applied_seconds"),
                    ("metering", "MeteringBehind"),
                    alarming=10,
                    has_exemplars=True,
                ),
                Panel(
                    "One batch, queue to commit",
                    "Postgres's speed. If it rises with the same load, look at its disk and its vacuum.",
                    "s",
                    quantiles("kgents_metering_apply_seconds"),
                    ("metering", "MeteringBehind"),
                    has_exemplars=True,
                ),
                Panel(
                    "Batches tried again",
                    "Postgres is away or overloaded; nothing is acknowledged meanwhile.",
                    "cps",
                    (Query(rate("kgents_metering_apply_retries_total"), "tried again"),),
                    ("metering", "MeteringPostgresAway"),
                ),
                Panel(
                    "Counted without a usable value",
                    "The event counts, its value does not. A producer or a meter's definition is wrong.",
                    "cps",
                    (Query(rate("kgents_metering_invalid_total", by="code"), "{{code}}"),),
                    ("metering", "UnusableValues"),
                    is_quiet=True,
                ),
            ),
        ),
        Row(
            "Leaving the stream",
            (
                Panel(
                    "Raw events that left AGENTESE",
                    "Applied, archived and old enough. Nothing leaves while backup has not verified it: then the stream fills.",
                    "cps",
                    (Query(rate("kgents_metering_raw_trimmed_total"), "left"),),
                    ("nats", "StreamNearlyFull"),
                    width=24,
                ),
            ),
        ),
        Row(
            "Delivering",
            (
                Panel(
                    "Owed to OpenMeter",
                    "The outbox, in Postgres. It grows while OpenMeter is away and is paid afterwards.",
                    "short",
                    (Query("max(kgents_openmeter_events_buffered)", "owed"),),
                    ("metering", "OpenMeterBufferLarge"),
                    alarming=1000,
                ),
                Panel(
                    "Delivered, and found there already",
                    "The second are events whose first try was unsure; they were asked for and not sent twice.",
                    "cps",
                    (
                        Query(rate("kgents_openmeter_events_sent_total"), "delivered"),
                        Query(rate("kgents_openmeter_events_verified_total"), "found there"),
                    ),
                    ("metering", "OpenMeterBufferLarge"),
                ),
                Panel(
                    "Batches not taken, by what was done",
                    "`retry`: OpenMeter's trouble. `pause`: our key or address. `bisect`, `halve`: looking for the one it refuses.",
                    "cps",
                    (Query(rate("kgents_openmeter_flush_errors_total", by="verdict"), "{{verdict}}"),),
                    ("metering", "OpenMeterFlushErrors"),
                    is_quiet=True,
                ),
                Panel(
                    "One request to OpenMeter",
                    "Its speed. Above KGENTS_OPENMETER_TIMEOUT_SECONDS the outcome is unknown and is looked up later.",
                    "s",
                    quantiles("kgents_openmeter_flush_latency_seconds"),
                    ("metering", "OpenMeterFlushErrors"),
                    has_exemplars=True,
                ),
                Panel(
                    "Who delivers, who pauses",
                    "One process leads. None with events owed, or a pause, is an alert.",
                    "none",
                    (
                        Query("sum(kgents_openmeter_delivery_leader)", "leaders"),
                        Query("max(kgents_openmeter_paused)", "paused"),
                        Query("max(kgents_openmeter_circuit_state)", "circuit"),
                    ),
                    ("metering", "NobodyDelivers"),
                ),
            ),
        ),
        Row(
            "Usage queries",
            (
                Panel(
                    "Reads by how they ended",
                    "`busy` and `timeout` are tenants who ask more than their share; others are not slowed by them.",
                    "reqps",
                    (Query(rate("kgents_metering_reads_total", by="outcome"), "{{outcome}}"),),
                    ("metering", "ReadsSlow"),
                    is_quiet=True,
                ),
                Panel(
                    "Time of a read",
                    "Long ranges with many groups are slow by nature; counting never waits for them.",
                    "s",
                    quantiles("kgents_metering_read_seconds"),
                    ("metering", "ReadsSlow"),
                    has_exemplars=True,
                    is_quiet=True,
                ),
                Panel(
                    "Reads under way and waiting",
                    "Waiting ones stand in their own tenant's line. Add an instance of the reads when it is everybody's.",
                    "short",
                    (
                        Query("sum(kgents_metering_reads_running)", "running"),
                        Query("sum(kgents_metering_reads_waiting)", "waiting"),
                    ),
                    ("metering", "ReadsSlow"),
                ),
            ),
        ),
    ),
)
