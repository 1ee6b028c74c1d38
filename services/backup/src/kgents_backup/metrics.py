"""The names on the backup dashboard; a stream is one of two and a store one of two, so both may be labels."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

LAG_BUCKETS = (0.5, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 15, 30, 60, 300, 3600)


class Metrics:
    """Every metric of the backup service, in one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.last_success = Gauge(
            "kgents_backup_last_success_timestamp_seconds",
            "When the last snapshot of the stream was taken",
            ["stream"],
            registry=registry,
        )
        self.last_upload = Gauge(
            "kgents_backup_s3_last_upload_timestamp_seconds",
            "When a file last reached the off-site store",
            registry=registry,
        )
        self.archive_lag = Histogram(
            "kgents_backup_archive_lag_seconds",
            "How old the oldest message of a segment was when it was stored (the RPO)",
            ["stream"],
            buckets=LAG_BUCKETS,
            registry=registry,
        )
        self.archive_pending = Gauge(
            "kgents_backup_archive_pending_messages",
            "Messages of the stream that are not archived",
            ["stream"],
            registry=registry,
        )
        self.archive_position = Gauge(
            "kgents_backup_archive_last_sequence",
            "The last archived sequence",
            ["stream"],
            registry=registry,
        )
        self.archive_alive = Gauge(
            "kgents_backup_archive_alive_timestamp_seconds",
            "When the archive last moved on or was caught up",
            ["stream"],
            registry=registry,
        )
        self.segments = Counter(
            "kgents_backup_segments_total", "Segments stored", ["stream"], registry=registry
        )
        self.waiting_uploads = Gauge(
            "kgents_backup_uploads_waiting", "Segments that are not off-site yet", registry=registry
        )
        self.snapshot_seconds = Gauge(
            "kgents_backup_snapshot_duration_seconds",
            "How long the last snapshot took",
            ["stream"],
            registry=registry,
        )
        self.snapshot_bytes = Gauge(
            "kgents_backup_snapshot_size_bytes", "The last snapshot's bytes", ["stream"], registry=registry
        )
        self.drill_passed = Gauge(
            "kgents_backup_drill_last_passed_timestamp_seconds",
            "When a drill of the stream last passed",
            ["stream"],
            registry=registry,
        )
        self.drill_restore_seconds = Gauge(
            "kgents_backup_drill_restore_duration_seconds",
            "How long the last drill's restore took (the RTO)",
            ["stream"],
            registry=registry,
        )
        self.failures = Counter(
            "kgents_backup_failures_total", "Steps of the daily run that failed", ["step"], registry=registry
        )
        self.faults = Gauge(
            "kgents_backup_restore_faults",
            "Reasons why a restore would not work now, or not be trusted; `kgents-backup status` names them",
            registry=registry,
        )
        self.verified = Gauge(
            "kgents_backup_verified_timestamp_seconds",
            "When the newest snapshot that was read back and found good was taken",
            ["store", "stream"],
            registry=registry,
        )
        self.clock_ahead = Gauge(
            "kgents_backup_clock_ahead_seconds",
            "How far this machine's clock is ahead of the NATS server's",
            registry=registry,
        )
        self.sealed = Gauge(
            "kgents_backup_sealed", "1 where backups are encrypted, 0 where they are plain", registry=registry
        )
        self.mirror_lag = Gauge(
            "kgents_backup_mirror_lag_messages",
            "Messages the DR region's mirror is behind; -1 where unknown",
            ["stream"],
            registry=registry,
        )
