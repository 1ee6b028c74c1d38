"""The system at a glance: is every promise kept, and how much may still go wrong."""

from __future__ import annotations

from kgents_observability.dashboards.panels import Board, Panel, Query, Row, number, rate
from kgents_observability.slo import OBJECTIVES

BURN = ("slo", "ErrorBudgetBurnsFast")

BOARD = Board(
    "kgents-glance",
    "kgents / The system at a glance",
    "For whoever is on call: what is promised, what flows, what waits. Start here.",
    (
        Row(
            "Promises",
            (
                *(
                    number(
                        f"Budget left: {one.slug}",
                        f"{one.title}: {one.target:.1%} of two weeks. Below nought the promise is broken: release"
                        " nothing but what mends it.",
                        "percentunit",
                        f'kgents:slo_budget_left:ratio14d{{slo="{one.slug}"}} or vector(1)',
                        ("slo", "ErrorBudgetBurnsSlowly"),
                        alarming=0.1,
                        is_low_bad=True,
                        width=6,
                    )
                    for one in OBJECTIVES
                ),
                Panel(
                    "Not as promised, of the last hour",
                    "The share of bad ones, per objective. The runbook says how to find the cause.",
                    "percentunit",
                    (Query("kgents:slo_errors:ratio_rate1h", "{{slo}}"),),
                    BURN,
                    is_quiet=True,
                    width=12,
                ),
                Panel(
                    "Alerts that fire",
                    "What is wrong now, by alert; the watchdog fires always and is left out. Follow the alert's runbook.",
                    "short",
                    (
                        Query(
                            'count by (alertname) (ALERTS{alertstate="firing",alertname!="Watchdog"})',
                            "{{alertname}}",
                        ),
                    ),
                    ("processes", "Watchdog"),
                    is_quiet=True,
                    width=12,
                ),
            ),
        ),
        Row(
            "From door to bill",
            (
                Panel(
                    "Accepted, counted, delivered",
                    "The three should lie on each other. Accepted alone: metering stands. Delivered falls behind: OpenMeter.",
                    "cps",
                    (
                        Query(rate("kgents_nats_messages_published_total"), "accepted"),
                        Query(rate("kgents_metering_events_total", 'outcome="accepted"'), "counted"),
                        Query(rate("kgents_openmeter_events_sent_total"), "delivered"),
                    ),
                    ("metering", "MeteringBehind"),
                    width=12,
                ),
                Panel(
                    "What waits",
                    "Not yet counted, not yet delivered, not yet told, not yet archived. Each returns to nought; what"
                    " grows has an alert of its own.",
                    "short",
                    (
                        Query("max(kgents_metering_stream_pending)", "to be counted"),
                        Query("max(kgents_openmeter_events_buffered)", "owed to OpenMeter"),
                        Query("max(kgents_billing_stream_pending)", "of Stripe"),
                        Query("max(kgents_billing_facts_owed)", "facts owed"),
                        Query("sum(kgents_backup_archive_pending_messages)", "to be archived"),
                        Query("sum(kgents_nats_fallback_queue_depth)", "spooled"),
                    ),
                    ("metering", "MeteringStalled"),
                    width=12,
                ),
                Panel(
                    "For a person to decide",
                    "Dead letters, refused events and those without a tenant wait for somebody. Nought is the goal; each"
                    " kind has its commands in the runbook.",
                    "short",
                    (
                        Query("max(kgents_metering_dead_letters)", "dead letters, metering"),
                        Query("max(kgents_billing_dead_letters)", "dead letters, billing"),
                        Query("max(kgents_openmeter_events_poison)", "refused by OpenMeter"),
                        Query("max(kgents_billing_quarantined)", "without a tenant"),
                        Query("sum(kgents_nats_fallback_queue_refused)", "refused by the stream"),
                    ),
                    ("metering", "MeteringDeadLetters"),
                    alarming=1,
                    width=12,
                ),
                Panel(
                    "Circuits",
                    "0 closed, 1 open, 2 trying. Anything but 0 for minutes: that neighbour is away; nothing is lost meanwhile.",
                    "none",
                    (
                        Query("max(kgents_nats_circuit_state)", "NATS"),
                        Query("max(kgents_redis_circuit_state)", "Redis"),
                        Query("max(kgents_openmeter_circuit_state)", "OpenMeter"),
                        Query("max(kgents_stripe_circuit_state)", "Stripe"),
                    ),
                    ("nats", "NatsCircuitOpen"),
                    alarming=1,
                    width=12,
                ),
            ),
        ),
    ),
)
