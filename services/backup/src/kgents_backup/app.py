"""The composition root: settings become stores, connections, operations and the running service."""

from __future__ import annotations

import asyncio
import functools
from datetime import datetime, timedelta

import structlog
from prometheus_client import CollectorRegistry

from kgents_backup.handlers.schedule import ArchiveWatch, Loop, archive, daily
from kgents_backup.metrics import Metrics
from kgents_backup.model.keys import SegmentName
from kgents_backup.model.ports import NoProgress, Progress
from kgents_backup.operations.archiving import ArchivePolicy, Archiver
from kgents_backup.operations.daily import DailyRun
from kgents_backup.operations.disaster import Region, watch_mirrors
from kgents_backup.operations.standing import NOT_ENCRYPTED, Inspection, Standing
from kgents_backup.operations.uploading import SegmentUploader
from kgents_backup.settings import BackupSettings
from kgents_backup.sinks.announcing import EventAnnouncer
from kgents_backup.sinks.store import (
    DirectoryStore,
    Lease,
    ObjectStore,
    Sealer,
    UnitedVault,
    Vault,
    open_object_store,
)
from kgents_backup.sinks.store.sealing import load_keys
from kgents_backup.sources.stream_client import StreamClient
from kgents_common.application import application
from kgents_common.clock import Clock, SystemClock
from kgents_common.connection import Connection
from kgents_common.crash import CrashPoints
from kgents_common.errors import ConfigurationError
from kgents_common.health import Check, Health, Heartbeat, Probe, Status, routes, up
from kgents_common.publisher import Publisher
from kgents_common.request_metrics import RequestMetrics
from kgents_common.service import Part, serve
from kgents_common.settings import process_id
from kgents_common.telemetry import Tracing, new_registry
from kgents_common.watchdog import StallMetrics

SERVICE = "backup"
INSPECT_SECONDS = 60.0

_log = structlog.get_logger()


class Backup:
    """Everything that commands and the service share."""

    def __init__(
        self, settings: BackupSettings, *, progress: Progress | None = None, clock: Clock | None = None
    ) -> None:
        """Put together; nothing is connected yet.

        Raises:
            ConfigurationError: The key file or the off-site URL cannot be used.
        """
        self.settings = settings
        self.clock = clock or SystemClock()
        self.owner = process_id()
        self.progress = progress or NoProgress()
        self.crash = CrashPoints(settings.crash_at)
        self.registry: CollectorRegistry = new_registry()
        self.metrics = Metrics(self.registry)
        sealer = Sealer(load_keys(settings.key_file) if settings.key_file else ())
        self.local = Vault(DirectoryStore(settings.directory), sealer)
        self.offsite = Vault(_offsite(settings), sealer) if settings.offsite_url else None
        self.client = StreamClient(settings, name="kgent-backup")
        self.announcer = EventAnnouncer(self.client, self.clock, instance=settings.instance)
        self.daily = DailyRun(
            client=self.client,
            local=self.local,
            offsite=self.offsite,
            streams=settings.streams,
            clock=self.clock,
            owner=self.owner,
            local_keep=settings.local_keep,
            offsite_keep=settings.offsite_keep,
            metrics=self.metrics,
            announcer=self.announcer,
            database_url=settings.database_url.get_secret_value() if settings.database_url else None,
            drill_nats=settings.drill_nats,
            drill_directory=settings.directory if settings.drill_nats is None else None,
            progress=self.progress,
            crash=self.crash,
        )

    def vault(self, name: str) -> Vault:
        """`local`, `offsite`, or `all`: whatever there is, read as one.

        Raises:
            ConfigurationError: There is no off-site store.
        """
        if name == "all":
            return UnitedVault(self.local, self.offsite) if self.offsite else self.local
        if name == "local":
            return self.local
        if self.offsite is None:
            raise ConfigurationError("there is no off-site store", hint="set KGENTS_BACKUP_OFFSITE_URL")
        return self.offsite

    def archiver(self, stream: str, uploader: SegmentUploader | None = None) -> tuple[Archiver, Lease]:
        """An archiver of a stream into the local vault, and the lock it needs."""
        lease = Lease(self.local.store, f"archive-{stream}", owner=self.owner, clock=self.clock)

        def stored(name: SegmentName, lag_seconds: float) -> None:
            self.metrics.archive_lag.labels(stream).observe(lag_seconds)
            self.metrics.segments.labels(stream).inc()
            if uploader is not None:
                uploader.add(name)

        archiver = Archiver(
            self.client,
            self.local,
            stream,
            clock=self.clock,
            policy=ArchivePolicy(
                every=timedelta(seconds=self.settings.archive_seconds),
                segment_bytes=self.settings.segment_bytes,
            ),
            check=lease.check,
            on_segment=stored,
            crash=self.crash,
        )
        return archiver, lease

    async def newest_snapshot(self) -> datetime | None:
        """When the stream whose newest snapshot is oldest was last copied; None where one never was.

        Raises:
            StoreError: The local store does not answer.
        """
        found: list[datetime] = []
        for stream in self.settings.streams:
            snapshots = (await self.local.catalogue(stream)).snapshots
            if not snapshots:
                return None
            self.metrics.last_success.labels(stream).set(snapshots[-1].taken_at.timestamp())
            found.append(snapshots[-1].taken_at)
        return min(found)

    def inspection(self) -> Inspection:
        """What tells whether a restore would work now."""
        vaults = [self.local, *([self.offsite] if self.offsite else [])]
        has_database = self.settings.database_url is not None
        return Inspection(self.client, vaults, self.settings.streams, self.clock, has_database)

    def region(self) -> Region | None:
        """The DR region; None where none is set."""
        settings = self.settings
        if not settings.dr_servers:
            return None
        return Region(
            primary=self.client,
            dr=StreamClient(settings, servers=settings.dr_servers, name="kgent-backup-dr"),
            primary_domain=settings.primary_domain,
            dr_domain=settings.dr_domain,
            streams=settings.streams,
        )


async def run_service(settings: BackupSettings) -> None:
    """Archive for ever, run once a day, serve health and metrics, until told to stop.

    Raises:
        ConfigurationError: The process must not start like this.
    """
    backup = Backup(settings)
    health = Health(SERVICE, settings.instance)
    connection = Connection(settings, name=f"kgent-{SERVICE}")
    publisher = Publisher(connection)
    parts: list[Part] = [
        connection,
        publisher,
        backup.client,
        Heartbeat(health, connection, backup.clock, every_seconds=settings.heartbeat_seconds),
    ]
    uploader: SegmentUploader | None = None
    if backup.offsite is not None:
        uploader = SegmentUploader(
            backup.local,
            backup.offsite,
            on_upload=lambda: backup.metrics.last_upload.set(backup.clock.now().timestamp()),
        )
        parts.append(Loop("upload", uploader.run))
        health.useful["offsite"] = _uploads(uploader)
        backup.metrics.waiting_uploads.set_function(lambda: float(uploader.waiting))
    health.needed["nats"] = lambda: up(connection.is_reading)
    stalls = StallMetrics(backup.registry)
    for stream in settings.streams:
        archiver, lease = backup.archiver(stream, uploader)
        name = f"archive.{stream}"
        archiving = Loop(name, functools.partial(archive, archiver, lease, backup.clock))
        every = timedelta(seconds=settings.archive_seconds)
        watch = ArchiveWatch(archiver, archiving, name, every=every, clock=backup.clock, metrics=stalls)
        parts += [archiving, Loop(f"watch.{name}", watch.run)]
        health.needed[name] = watch.check
        _watch(backup.metrics, stream, archiver)
    parts.append(
        Loop(
            "daily",
            lambda: daily(
                backup.daily, at=settings.daily_at, clock=backup.clock, newest=backup.newest_snapshot
            ),
        )
    )
    standing = Standing()
    parts.append(Loop("inspect", lambda: _inspect(backup.inspection(), backup.metrics, standing)))
    health.useful["restore"] = lambda: (
        Check(Status.DEGRADED, "; ".join(standing.faults)[:500]) if standing.faults else Check(Status.OK)
    )
    if not backup.local.sealer.is_sealing:
        _log.warning("backup.plain", detail=NOT_ENCRYPTED)
        health.useful["encryption"] = lambda: Check(Status.OK, NOT_ENCRYPTED)
    region = backup.region()
    if region is not None:
        parts.append(Loop("mirrors", lambda: watch_mirrors(region, backup.metrics)))
    app = application(routes(health), requests=RequestMetrics(backup.registry))
    tracing = Tracing(service=SERVICE, instance=settings.instance, endpoint=settings.otlp_endpoint)
    await serve(
        settings=settings, health=health, app=app, parts=parts, tracing=tracing, registry=backup.registry
    )


async def _inspect(inspection: Inspection, metrics: Metrics, standing: Standing) -> None:
    """Ask once a minute whether a restore would work; for ever."""
    while True:
        # A run that is overdue at the start is being made up for first.
        await asyncio.sleep(INSPECT_SECONDS)
        found = await inspection.look()
        standing.faults, standing.notes = found.faults, found.notes
        metrics.faults.set(len(found.faults))
        for (store, stream), moment in found.verified.items():
            metrics.verified.labels(store, stream).set(moment.timestamp())
        if found.clock_ahead is not None:
            metrics.clock_ahead.set(found.clock_ahead.total_seconds())
        metrics.sealed.set(all(vault.sealer.is_sealing for vault in inspection.vaults))


def _watch(metrics: Metrics, stream: str, archiver: Archiver) -> None:
    state = archiver.state
    metrics.archive_pending.labels(stream).set_function(lambda: float(state.pending))
    metrics.archive_position.labels(stream).set_function(lambda: float(state.position))
    metrics.archive_alive.labels(stream).set_function(lambda: state.stored_at)


def _uploads(uploader: SegmentUploader) -> Probe:
    def probe() -> Check:
        if uploader.damaged:
            return Check(Status.DEGRADED, uploader.damaged)
        if uploader.last_error:
            return Check(Status.DEGRADED, f"{uploader.waiting} segments wait")
        return Check(Status.OK)

    return probe


def _offsite(settings: BackupSettings) -> ObjectStore:
    secret = settings.s3_secret_key.get_secret_value() if settings.s3_secret_key else None
    options = {
        "endpoint": settings.s3_endpoint,
        "region": settings.s3_region,
        "access_key_id": settings.s3_access_key,
        "secret_access_key": secret,
    }
    url = str(settings.offsite_url)
    given = {name: value for name, value in options.items() if value} if url.startswith("s3") else {}
    return open_object_store(url, options=given)
