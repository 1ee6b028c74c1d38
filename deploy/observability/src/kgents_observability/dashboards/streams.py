"""JetStream and the two streams, as NATS's exporter tells of them; consumers only as their leaders see them."""

from __future__ import annotations

from kgents_observability.dashboards.panels import Board, Panel, Query, Row, number, rate

OURS = 'stream_name=~"AGENTESE|EVENTS"'
LED = f'{OURS},is_stream_leader="true"'
CONSUMERS = 'is_consumer_leader="true",consumer_name=~"metering|metering-billing-facts|billing-worker"'

BOARD = Board(
    "kgents-streams",
    "kgents / JetStream and the streams",
    "For whoever runs NATS: health, room, who reads and how far behind.",
    (
        Row(
            "Servers",
            (
                number(
                    "Healthy servers",
                    "Two of three are enough. Do not touch another before all are back.",
                    "short",
                    'count(nats_healthz_status_value{value="ok"} == 1)',
                    ("nats", "NatsServerNotReady"),
                    alarming=1,
                    is_low_bad=True,
                    width=6,
                ),
                Panel(
                    "Connections",
                    "Each instance holds one or a few. A fall: a network policy, or credentials.",
                    "short",
                    (Query("sum by (instance) (nats_varz_connections)", "{{instance}}"),),
                    ("nats", "NatsServerNotReady"),
                    width=9,
                ),
                Panel(
                    "Messages in",
                    "Everything, heartbeats and requests too.",
                    "cps",
                    (Query(rate("nats_varz_in_msgs", by="instance"), "{{instance}}"),),
                    ("nats", "PublishErrors"),
                    width=9,
                ),
                Panel(
                    "Slow consumers",
                    "Clients that did not read what they asked for; they are cut off and come again.",
                    "short",
                    (Query("sum by (instance) (nats_varz_slow_consumers)", "{{instance}}"),),
                    ("nats", "NatsServerNotReady"),
                    width=12,
                ),
                Panel(
                    "Memory and storage used",
                    "Storage near its maximum: enlarge volumes before the streams' limits, never after.",
                    "bytes",
                    (
                        Query("sum by (instance) (nats_varz_mem)", "memory {{instance}}"),
                        Query("max by (instance) (nats_server_total_message_bytes)", "stored {{instance}}"),
                    ),
                    ("nats", "StreamNearlyFull"),
                    width=12,
                ),
            ),
        ),
        Row(
            "Streams",
            (
                Panel(
                    "Full",
                    "At 100 % every publisher is refused. Raise the limit before; nothing is ever dropped to make room.",
                    "percentunit",
                    (Query("max by (stream) (kgents_stream_fill_ratio)", "{{stream}}"),),
                    ("nats", "StreamNearlyFull"),
                    alarming=0.8,
                    width=6,
                ),
                Panel(
                    "Until it is full",
                    "If it grows as in the last ten minutes. Below a day for an hour is an alert; no line: it does not grow.",
                    "s",
                    (Query("min by (stream) (kgents_stream_seconds_to_full) < +Inf", "{{stream}}"),),
                    ("nats", "StreamFillsWithinADay"),
                    is_quiet=True,
                    width=6,
                ),
                Panel(
                    "Stream bytes and limits",
                    "What is kept, and what may be. It falls when messages expire or leave.",
                    "bytes",
                    (
                        Query("max by (stream) (kgents_stream_bytes)", "{{stream}}"),
                        Query("max by (stream) (kgents_stream_max_bytes)", "{{stream}}, its limit"),
                        Query(
                            f"max by (stream_name) (nats_stream_total_bytes{{{OURS}}})",
                            "{{stream_name}}, NATS says",
                        ),
                    ),
                    ("nats", "StreamNearlyFull"),
                    width=6,
                ),
                Panel(
                    "Messages stored a second",
                    "By the last sequence.",
                    "cps",
                    (
                        Query(
                            f"max by (stream_name) (rate(nats_stream_last_seq{{{LED}}}[$__rate_interval]))",
                            "{{stream_name}}",
                        ),
                    ),
                    ("door", "NoEventsAccepted"),
                    width=6,
                ),
            ),
        ),
        Row(
            "Our consumers",
            (
                Panel(
                    "Not yet delivered to them",
                    "How far each is behind. The alert is on what is not counted.",
                    "short",
                    (
                        Query(
                            f"max by (consumer_name) (nats_consumer_num_pending{{{CONSUMERS}}})",
                            "{{consumer_name}}",
                        ),
                    ),
                    ("metering", "MeteringStalled"),
                ),
                Panel(
                    "Delivered, not acknowledged",
                    "In their hands. At the consumer's limit it gets no more: its database is slow.",
                    "short",
                    (
                        Query(
                            f"max by (consumer_name) (nats_consumer_num_ack_pending{{{CONSUMERS}}})",
                            "{{consumer_name}}",
                        ),
                    ),
                    ("metering", "MeteringPostgresAway"),
                ),
                Panel(
                    "Delivered again",
                    "Messages a worker had in hand when it died or stood still.",
                    "short",
                    (
                        Query(
                            f"max by (consumer_name) (nats_consumer_num_redelivered{{{CONSUMERS}}})",
                            "{{consumer_name}}",
                        ),
                    ),
                    ("metering", "MeteringPostgresAway"),
                ),
            ),
        ),
    ),
)
