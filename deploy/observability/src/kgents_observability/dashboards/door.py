"""The door: what agents see of the system."""

from __future__ import annotations

from kgents_observability.dashboards.panels import Board, Panel, Query, Row, quantile, quantiles, rate
from kgents_observability.slo import INGEST_LATENCY

LATENCY = ("door", "ApiLatencyHigh")

BOARD = Board(
    "kgents-door",
    "kgents / The door",
    "For whoever runs the api: requests, answers, refusals, the way into JetStream, live streams.",
    (
        Row(
            "Requests",
            (
                Panel(
                    "Requests by answer",
                    "5xx are ours, 4xx the senders'. A rise of 503: JetStream or the limit of requests at once; of 429:"
                    " a tenant above its rate.",
                    "reqps",
                    (Query(rate("kgents_api_requests_total", by="code"), "{{code}}"),),
                    ("door", "DoorTooBusy"),
                ),
                Panel(
                    "Requests by route",
                    "Where the load is. Nothing at all where there usually is something is an alert.",
                    "reqps",
                    (Query(rate("kgents_api_requests_total", by="route"), "{{route}}"),),
                    ("door", "NoEventsAccepted"),
                ),
                Panel(
                    "Refused, by why",
                    "`unauthenticated` in numbers: somebody's key was revoked, or somebody guesses. `not_durable`: NATS."
                    " `rate_limited`: lower the sender or raise the limit.",
                    "reqps",
                    (Query(rate("kgents_api_events_refused_total", by="reason"), "{{reason}}"),),
                    ("door", "DoorTooBusy"),
                    is_quiet=True,
                ),
                Panel(
                    "Time to the answer, requests with events",
                    "Mostly JetStream's acknowledgement. The points are traces: open one that is high.",
                    "s",
                    quantiles("kgents_api_request_latency_seconds", INGEST_LATENCY),
                    LATENCY,
                    alarming=2,
                    has_exemplars=True,
                    width=12,
                ),
                Panel(
                    "Time to the answer by route, p95",
                    "Which route is slow. Health and metrics belong below a hundredth of a second: else the process is starved.",
                    "s",
                    (Query(quantile(0.95, "kgents_api_request_latency_seconds", by="route"), "{{route}}"),),
                    LATENCY,
                    width=12,
                ),
            ),
        ),
        Row(
            "Into JetStream",
            (
                Panel(
                    "Events accepted",
                    "Acknowledged by JetStream. A fall to nought is an alert where there usually are some.",
                    "cps",
                    (
                        Query(rate("kgents_nats_messages_published_total"), "accepted"),
                        Query(rate("kgents_nats_duplicates_total"), "of these repeats"),
                        Query(rate("kgents_api_conflicts_total"), "of these contradictions"),
                    ),
                    ("door", "NoEventsAccepted"),
                ),
                Panel(
                    "Could not be made durable",
                    "Answered 503; the senders come again. Look at NATS.",
                    "cps",
                    (Query(rate("kgents_nats_publish_errors_total"), "errors"),),
                    ("nats", "PublishErrors"),
                ),
                Panel(
                    "On their way",
                    "Sent and not yet acknowledged. A high plateau: JetStream's disk is slow.",
                    "short",
                    (Query("sum(kgents_nats_publishes_in_flight)", "in flight"),),
                    LATENCY,
                ),
                Panel(
                    "Spool, events",
                    "On the door's own disk while NATS is away; it empties by itself. Refused ones wait for you.",
                    "short",
                    (
                        Query("sum(kgents_nats_fallback_queue_depth)", "waiting"),
                        Query("sum(kgents_nats_fallback_queue_refused)", "refused by the stream"),
                    ),
                    ("door", "SpoolHoldsEvents"),
                    alarming=1,
                ),
                Panel(
                    "Spool, bytes",
                    "Of KGENTS_SPOOL_MAX_BYTES; full, the door answers 503.",
                    "bytes",
                    (
                        Query("max(kgents_nats_fallback_queue_bytes)", "fullest instance"),
                        Query("max(kgents_nats_fallback_queue_max_bytes)", "may hold"),
                    ),
                    ("door", "SpoolFilling"),
                ),
                Panel(
                    "Replayed from the spool",
                    "Seen after an outage only, until the spool is empty.",
                    "cps",
                    (Query(rate("kgents_nats_fallback_replayed_total"), "replayed"),),
                    ("door", "SpoolHoldsEvents"),
                ),
            ),
        ),
        Row(
            "Limits and live streams",
            (
                Panel(
                    "Until a key in use ends",
                    "The first to end of those used in the last day; none shown where none has an end. Rotate it before.",
                    "s",
                    (Query("min(kgents_keys_next_expiry_timestamp_seconds) - time() < Inf", "first to end"),),
                    ("door", "KeyEndsSoon"),
                    alarming=604800,
                    is_low_bad=True,
                    is_quiet=True,
                ),
                Panel(
                    "Rate limit without Redis",
                    "Requests that passed unlimited, as Redis did not answer. Bring it back.",
                    "cps",
                    (Query(rate("kgents_api_rate_limit_unanswered_total"), "passed"),),
                    ("door", "RedisCircuitOpen"),
                ),
                Panel(
                    "Agents on NATS",
                    "Connected past the HTTP door, at the last look. A fall to nought: the auth callout or NATS.",
                    "short",
                    (Query("sum(kgents_agents_connected)", "connected"),),
                    ("door", "NoEventsAccepted"),
                ),
                Panel(
                    "Agents that wanted to connect",
                    "By what was answered; `cut` are connections that ended with their credentials. Refusals in numbers: a revoked key.",
                    "cps",
                    (
                        Query(rate("kgents_agents_connects_total", by="outcome"), "{{outcome}}"),
                        Query(rate("kgents_agents_cut_total"), "cut"),
                        Query(rate("kgents_agents_paused_total"), "tenants paused"),
                    ),
                    ("door", "NoEventsAccepted"),
                    is_quiet=True,
                ),
                Panel(
                    "Usage questions not answered",
                    "The reads of metering were away or too slow; events are not affected. See their dashboard.",
                    "cps",
                    (Query(rate("kgents_api_reads_unanswered_total"), "not answered"),),
                    ("metering", "ReadsSlow"),
                ),
                Panel(
                    "Live streams",
                    "Open ones, and those that read for themselves to catch up. Many of the latter: clients too slow for their tenant.",
                    "short",
                    (
                        Query("sum(kgents_api_live_clients)", "open"),
                        Query("sum(kgents_api_live_clients_catching_up)", "catching up"),
                    ),
                    ("processes", "FileDescriptorsNearLimit"),
                ),
                Panel(
                    "Live events and endings",
                    "`stalled` clients do not read; they come again. `failed` is ours: see the log.",
                    "cps",
                    (
                        Query(rate("kgents_api_live_events_sent_total"), "events sent"),
                        Query(rate("kgents_api_live_streams_ended_total", by="reason"), "ended: {{reason}}"),
                    ),
                    ("processes", "FileDescriptorsNearLimit"),
                ),
            ),
        ),
    ),
)
