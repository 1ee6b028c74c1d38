"""Backups: could everything come back, to when, and was it tried."""

from __future__ import annotations

from kgents_observability.dashboards.panels import Board, Panel, Query, Row, number, quantile, rate

BOARD = Board(
    "kgents-backups",
    "kgents / Backups",
    "For whoever must bring it all back: snapshots, archive, off-site copies, drills, the second region.",
    (
        Row(
            "Could it come back?",
            (
                number(
                    "Age of the last snapshot",
                    "Above 25 hours the daily run failed. The archive still protects; mend it today.",
                    "s",
                    "time() - min(kgents_backup_last_success_timestamp_seconds)",
                    ("backup", "BackupMissing"),
                    alarming=90000,
                    width=6,
                ),
                number(
                    "Age of the last passed drill",
                    "A backup nobody restored is a hope. Above two days run one by hand.",
                    "s",
                    "time() - min(kgents_backup_drill_last_passed_timestamp_seconds)",
                    ("backup", "DrillOverdue"),
                    alarming=176400,
                    is_quiet=True,
                    width=6,
                ),
                number(
                    "Last file off-site",
                    "1970: there is no off-site store. Then a lost site is a lost system.",
                    "dateTimeFromNow",
                    "max(kgents_backup_s3_last_upload_timestamp_seconds) * 1000",
                    ("backup", "OffsiteMissing"),
                    width=6,
                ),
                number(
                    "Second region behind",
                    "Messages it lacks; -1: nobody knows. None where there is no second region.",
                    "short",
                    "max by (stream) (kgents_backup_mirror_lag_messages)",
                    ("backup", "MirrorBehind"),
                    alarming=10000,
                    is_quiet=True,
                    legend="{{stream}}",
                    width=6,
                ),
            ),
        ),
        Row(
            "Can it be trusted?",
            (
                number(
                    "Reasons a restore would fail",
                    "`kgents-backup status` names each, with what to do.",
                    "short",
                    "max(kgents_backup_restore_faults)",
                    ("backup", "RestoreWouldFail"),
                    alarming=1,
                    width=6,
                ),
                number(
                    "Age of the newest verified snapshot",
                    "Read back and found good. Above two days verify by hand.",
                    "s",
                    "time() - min by (store) (kgents_backup_verified_timestamp_seconds)",
                    ("backup", "BackupUnverified"),
                    alarming=176400,
                    is_quiet=True,
                    legend="{{store}}",
                    width=6,
                ),
                number(
                    "Encrypted",
                    "1 where backups are sealed. 0 in production: set KGENTS_BACKUP_KEY_FILE.",
                    "none",
                    "min(kgents_backup_sealed)",
                    ("backup", "BackupStepFailed"),
                    width=6,
                ),
                number(
                    "Clock ahead of NATS's",
                    "More than some seconds, either way: mend time synchronisation.",
                    "s",
                    "max(kgents_backup_clock_ahead_seconds)",
                    ("backup", "ClockSkew"),
                    alarming=5,
                    width=6,
                ),
            ),
        ),
        Row(
            "Archive",
            (
                Panel(
                    "What a lost stream would cost, p95",
                    "How old a message is when the archive has it. Above half a minute: the disk, or the load.",
                    "s",
                    (Query(quantile(0.95, "kgents_backup_archive_lag_seconds", by="stream"), "{{stream}}"),),
                    ("backup", "ArchiveLagHigh"),
                    alarming=30,
                ),
                Panel(
                    "Not archived yet",
                    "Returns to nought every few seconds.",
                    "short",
                    (Query("max by (stream) (kgents_backup_archive_pending_messages)", "{{stream}}"),),
                    ("backup", "ArchiveStalled"),
                ),
                Panel(
                    "Since the archive last moved",
                    "Or was caught up. Above five minutes it stands.",
                    "s",
                    (
                        Query(
                            "time() - max by (stream) (kgents_backup_archive_alive_timestamp_seconds)",
                            "{{stream}}",
                        ),
                    ),
                    ("backup", "ArchiveStalled"),
                    alarming=300,
                ),
                Panel(
                    "Archived messages a second",
                    "By the last archived sequence.",
                    "cps",
                    (
                        Query(
                            "max by (stream) (deriv(kgents_backup_archive_last_sequence[$__rate_interval]))",
                            "{{stream}}",
                        ),
                    ),
                    ("backup", "ArchiveStalled"),
                ),
                Panel(
                    "Segments stored",
                    "One each few seconds under load.",
                    "cps",
                    (Query(rate("kgents_backup_segments_total", by="stream"), "{{stream}}"),),
                    ("backup", "ArchiveStalled"),
                ),
                Panel(
                    "Segments that wait for the off-site store",
                    "On the local disk alone. Look at the store's answers in the log.",
                    "short",
                    (Query("max(kgents_backup_uploads_waiting)", "waiting"),),
                    ("backup", "OffsiteBehind"),
                    alarming=20,
                ),
            ),
        ),
        Row(
            "The daily run",
            (
                Panel(
                    "Failed steps, of a day",
                    "The log's line daily.step_failed says why.",
                    "short",
                    (Query("sum by (step) (increase(kgents_backup_failures_total[1d]))", "{{step}}"),),
                    ("backup", "BackupStepFailed"),
                    is_quiet=True,
                    width=6,
                ),
                Panel(
                    "Duration of the last snapshot",
                    "Grows with the stream. Near a day is too long.",
                    "s",
                    (Query("max by (stream) (kgents_backup_snapshot_duration_seconds)", "{{stream}}"),),
                    ("backup", "BackupMissing"),
                    width=6,
                ),
                Panel(
                    "Size of the last snapshot",
                    "Half of yesterday's: find out why before you trust it.",
                    "bytes",
                    (Query("max by (stream) (kgents_backup_snapshot_size_bytes)", "{{stream}}"),),
                    ("backup", "BackupMissing"),
                    width=6,
                ),
                Panel(
                    "How long the drill's restore took",
                    "That is what coming back takes, without the deciding.",
                    "s",
                    (Query("max by (stream) (kgents_backup_drill_restore_duration_seconds)", "{{stream}}"),),
                    ("backup", "DrillOverdue"),
                    is_quiet=True,
                    width=6,
                ),
            ),
        ),
    ),
)
