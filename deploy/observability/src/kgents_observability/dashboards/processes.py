"""The processes themselves: are they there, what do they use, whom do they wait for."""

from __future__ import annotations

from kgents_observability.dashboards.panels import Board, Panel, Query, Row, rate

OURS = 'job=~"kgent-.+"'

BOARD = Board(
    "kgents-processes",
    "kgents / Processes",
    "For whoever sizes them: instances, memory, CPU, descriptors, waits.",
    (
        Row(
            "Processes",
            (
                Panel(
                    "Instances that answer",
                    "By service. None is an alert after three minutes.",
                    "short",
                    (Query(f"sum by (job) (up{{{OURS}}})", "{{job}}"),),
                    ("processes", "ServiceAbsent"),
                ),
                Panel(
                    "Resident memory",
                    "What grows with the load wants a higher limit; what grows without end is a fault to report.",
                    "bytes",
                    (
                        Query(
                            f"max by (job, instance) (process_resident_memory_bytes{{{OURS}}})",
                            "{{job}} {{instance}}",
                        ),
                    ),
                    ("processes", "ServiceRestarts"),
                ),
                Panel(
                    "CPU",
                    "Cores used. One event loop uses one core at most: near 1, add instances.",
                    "short",
                    (
                        Query(
                            rate("process_cpu_seconds_total", OURS, by="job, instance"),
                            "{{job}} {{instance}}",
                        ),
                    ),
                    ("door", "ApiLatencyHigh"),
                ),
                Panel(
                    "File descriptors, of their limit",
                    "Connections and live streams. Above four fifths: add instances.",
                    "percentunit",
                    (
                        Query(
                            f"process_open_fds{{{OURS}}} / process_max_fds{{{OURS}}}",
                            "{{job}} {{instance}}",
                        ),
                    ),
                    ("processes", "FileDescriptorsNearLimit"),
                    alarming=0.8,
                ),
                Panel(
                    "Restarts of an hour",
                    "Exit code 2 is a setting, 137 memory.",
                    "short",
                    (Query(f"changes(process_start_time_seconds{{{OURS}}}[1h])", "{{job}} {{instance}}"),),
                    ("processes", "ServiceRestarts"),
                ),
                Panel(
                    "Consumers without progress",
                    "How long, while something waits for them. Above a minute it is an alert; the worker is begun anew by itself.",
                    "s",
                    (Query("max by (consumer) (kgents_consumer_stalled_seconds)", "{{consumer}}"),),
                    ("processes", "ConsumerStalled"),
                    alarming=60,
                ),
                Panel(
                    "Since a worker was heard",
                    "By whichever door heard it last. Above a minute it is an alert: it does not reach NATS, or stands.",
                    "s",
                    (Query("min by (worker) (kgents_worker_silent_seconds)", "{{worker}}"),),
                    ("processes", "WorkerSilent"),
                    alarming=60,
                ),
                Panel(
                    "Until a certificate ends",
                    "Of the files that services are given. Below two weeks its renewal did not work: renew it by hand.",
                    "s",
                    (
                        Query(
                            "min by (file) (kgents_certificate_expiry_timestamp_seconds) - time()", "{{file}}"
                        ),
                    ),
                    ("processes", "CertificateEndsSoon"),
                    alarming=1209600,
                    is_low_bad=True,
                    is_quiet=True,
                ),
                Panel(
                    "Workers begun anew, of an hour",
                    "Again and again: what it waits for is stuck, see the runbook.",
                    "short",
                    (
                        Query(
                            "sum by (consumer) (increase(kgents_consumer_restarts_total[1h]))", "{{consumer}}"
                        ),
                    ),
                    ("processes", "ConsumerStalled"),
                    is_quiet=True,
                ),
                Panel(
                    "Waits for a neighbour, by loop",
                    "A loop that waits found somebody away: Postgres, NATS, OpenMeter or Stripe. It goes on by itself.",
                    "cps",
                    (
                        Query(rate("kgents_retry_waits_total", by="loop"), "{{loop}}"),
                        Query(
                            rate("kgents_retry_wait_seconds_total", by="loop"),
                            "{{loop}}, seconds of each second",
                        ),
                    ),
                    ("metering", "MeteringPostgresAway"),
                    is_quiet=True,
                ),
            ),
        ),
    ),
)
