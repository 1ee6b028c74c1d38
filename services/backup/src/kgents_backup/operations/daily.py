"""The daily run: snapshot, dump, merge, verify, upload, prune, drill; one step's failure stops no other."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import structlog

from kgents_backup.metrics import Metrics
from kgents_backup.model.documents import SnapshotManifest
from kgents_backup.model.keys import SnapshotName
from kgents_backup.model.ports import NoProgress, Progress
from kgents_backup.operations import clocks, databases
from kgents_backup.operations.drilling import drill
from kgents_backup.operations.positions import positions
from kgents_backup.operations.pruning import merge, prune, prune_databases
from kgents_backup.operations.snapshotting import take_snapshot
from kgents_backup.operations.standing import DrillRecord, drill_key
from kgents_backup.operations.uploading import upload_missing
from kgents_backup.operations.verifying import verify, verify_databases
from kgents_backup.sinks.announcing import Announcer, Silence
from kgents_backup.sinks.scratch import scratch_server
from kgents_backup.sinks.store import Lease, Vault
from kgents_backup.sources.verbatim import VerbatimClient
from kgents_common.clock import Clock
from kgents_common.crash import CrashPoints
from kgents_common.errors import KgentsError, PermanentError

RUN_LOCK = "run"

_log = structlog.get_logger()


@dataclass(slots=True)
class DailyOutcome:
    """What a run did; `failures` maps a step to its error."""

    snapshots: dict[str, str] = field(default_factory=dict)
    uploaded: int = 0
    drills: dict[str, bool] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DailyRun:
    """Everything a run needs.

    Attributes:
        database_url: None where there is no database to dump.
        drill_nats: A scratch server for the drill; None to start one.
        drill_directory: Where a started one keeps its files.
    """

    client: Callable[[], Awaitable[VerbatimClient]]
    local: Vault
    offsite: Vault | None
    streams: tuple[str, ...]
    clock: Clock
    owner: str
    local_keep: timedelta
    offsite_keep: timedelta
    metrics: Metrics
    announcer: Announcer = field(default_factory=Silence)
    database_url: str | None = None
    drill_nats: str | None = None
    drill_directory: Path | None = None
    progress: Progress = field(default_factory=NoProgress)
    crash: CrashPoints = field(default_factory=lambda: CrashPoints(None))

    def lease(self, vault: Vault) -> Lease:
        """The lock of runs that write snapshots, merge or prune in a vault."""
        return Lease(vault.store, RUN_LOCK, owner=self.owner, clock=self.clock)

    async def run(self) -> DailyOutcome:
        """One run under the lock.

        Raises:
            LockedError: Another run is at work.
            StoreError: The local store does not answer.
        """
        outcome = DailyOutcome()
        async with self.lease(self.local) as lease:
            taken: dict[str, SnapshotName] = {}
            for stream in self.streams:
                async with self._step(outcome, f"snapshot {stream}"):
                    taken[stream] = await self.snapshot(stream, lease)
                    outcome.snapshots[stream] = taken[stream].id
            if self.database_url is not None:
                async with self._step(outcome, "dump"):
                    await clocks.require(await self.client(), self.streams[0], self.clock)
                    await databases.dump(
                        self.database_url,
                        self.local,
                        clock=self.clock,
                        positions=await positions(await self.client(), self.local, self.streams),
                        check=lease.check,
                        progress=self.progress,
                    )
            for stream in self.streams:
                async with self._step(outcome, f"merge {stream}"):
                    await self._merge(stream, lease)
            for stream, name in taken.items():
                async with self._step(outcome, f"verify {stream}"):
                    await self.verify(self.local, stream, only=name)
            if self.database_url is not None:
                async with self._step(outcome, "verify dumps"):
                    await self._verify_dumps(self.local)
            async with self._step(outcome, "upload"):
                outcome.uploaded = await self.upload()
            if self.offsite is not None:
                for stream, name in taken.items():
                    async with self._step(outcome, f"verify offsite {stream}"):
                        await self.verify(self.offsite, stream, only=name)
                if self.database_url is not None:
                    async with self._step(outcome, "verify offsite dumps"):
                        await self._verify_dumps(self.offsite)
            for stream, name in taken.items():
                if not outcome.failures.keys() & {f"verify {stream}", f"verify offsite {stream}", "upload"}:
                    async with self._step(outcome, f"kept {stream}"):
                        await self._tell_kept(name)
            async with self._step(outcome, "clock"):
                for stream in self.streams:
                    await clocks.require(await self.client(), stream, self.clock)
                await self._prune(outcome, lease)
        for stream in self.streams:
            async with self._step(outcome, f"drill {stream}"):
                outcome.drills[stream] = await self.drill(stream)
            if self.offsite is not None:  # what is there must be enough by itself
                async with self._step(outcome, f"drill {self.offsite.name} {stream}"):
                    outcome.drills[f"{self.offsite.name} {stream}"] = await self.drill(stream, self.offsite)
        await self.announcer.announce(
            "run.failed" if outcome.failures else "run.completed",
            {"snapshots": outcome.snapshots, "uploaded": outcome.uploaded, "failures": outcome.failures},
        )
        return outcome

    async def snapshot(self, stream: str, lease: Lease) -> SnapshotName:
        """Take one; errors as `take_snapshot`."""
        name, manifest = await take_snapshot(
            await self.client(),
            self.local,
            stream,
            clock=self.clock,
            check=lease.check,
            progress=self.progress,
            crash=self.crash,
        )
        self.metrics.last_success.labels(stream).set(name.taken_at.timestamp())
        self.metrics.snapshot_seconds.labels(stream).set(manifest.seconds)
        self.metrics.snapshot_bytes.labels(stream).set(manifest.content_bytes)
        await self.announcer.announce(
            "snapshot.completed",
            {
                "stream": stream,
                "snapshot": name.id,
                "last_sequence": name.last,
                "messages": manifest.state["messages"],
                "bytes": manifest.content_bytes,
                "seconds": manifest.seconds,
            },
        )
        return name

    async def _tell_kept(self, name: SnapshotName) -> None:
        """Say up to where the stream is in a verified snapshot, in every store: it may be let go there.

        Raises:
            CorruptError: Its manifest cannot be read any more.
        """
        manifest = await self.local.read_document(name.manifest_key, SnapshotManifest)
        await self.announcer.announce(
            f"kept.{name.stream}", {"created": manifest.created, "last_sequence": name.last}
        )

    async def verify(self, vault: Vault, stream: str, *, only: SnapshotName | None = None) -> None:
        """Read back.

        Raises:
            PermanentError: Something is damaged.
        """
        report = await verify(vault, stream, only=only, progress=self.progress)
        kind = "verify.passed" if report.is_good else "verify.failed"
        await self.announcer.announce(
            kind, {"stream": stream, "store": vault.name, "files": report.segments, "faults": report.faults}
        )
        if not report.is_good:
            raise PermanentError("; ".join(report.faults))

    async def upload(self) -> int:
        """Copy what is missing off-site; how many files. 0 where there is no off-site store.

        Raises:
            StoreError: As `upload_missing`.
        """
        if self.offsite is None:
            return 0
        copied = await upload_missing(self.local, self.offsite, progress=self.progress, crash=self.crash)
        self.metrics.last_upload.set(self.clock.now().timestamp())
        return copied

    async def drill(self, stream: str, vault: Vault | None = None) -> bool:
        """Restore the newest state into a scratch server and compare; whether it passed.

        Args:
            vault: Instead of the local one.

        Raises:
            PermanentError: It did not pass.
            KgentsError: It could not be carried out.
        """
        vault = vault or self.local
        try:
            async with scratch_server(self.drill_nats, self.drill_directory) as scratch:
                report = await drill(
                    await self.client(),
                    scratch,
                    vault,
                    stream,
                    clock=self.clock,
                    progress=self.progress,
                )
        except PermanentError as error:
            facts = {"stream": stream, "store": vault.name, "faults": [str(error)]}
            await self.announcer.announce("drill.failed", facts)
            await self._note_drill(stream, vault, str(error))
            raise
        await self._note_drill(stream, vault, "; ".join(report.faults))
        await self.announcer.announce("drill.passed" if report.is_passed else "drill.failed", report.facts())
        if not report.is_passed:
            raise PermanentError("; ".join(report.faults))
        if vault.name == self.local.name:
            self.metrics.drill_restore_seconds.labels(stream).set(report.restore_seconds)
            self.metrics.drill_passed.labels(stream).set(self.clock.now().timestamp())
        return True

    async def _verify_dumps(self, vault: Vault) -> None:
        report = await verify_databases(vault, progress=self.progress)
        if not report.is_good:
            raise PermanentError("; ".join(report.faults))

    async def _note_drill(self, stream: str, vault: Vault, reason: str) -> None:
        record = DrillRecord(stream, self.clock.now(), reason)
        await self.local.write_document(drill_key(stream, vault.name), record)

    async def _merge(self, stream: str, lease: Lease) -> None:
        now = self.clock.now()
        await merge(
            self.local, stream, now=now, written_at=now.isoformat(), check=lease.check, crash=self.crash
        )

    async def _prune(self, outcome: DailyOutcome, lease: Lease) -> None:
        now = self.clock.now()
        for vault, keep in ((self.local, self.local_keep), (self.offsite, self.offsite_keep)):
            if vault is None:
                continue
            for stream in self.streams:
                async with self._step(outcome, f"prune {vault.name} {stream}"):
                    await prune(vault, stream, now=now, keep=keep, check=lease.check, crash=self.crash)
            async with self._step(outcome, f"prune {vault.name} databases"):
                await prune_databases(vault, now=now, keep=keep)

    def _step(self, outcome: DailyOutcome, name: str) -> AbstractAsyncContextManager[None]:
        return _recorded(outcome, name, self.metrics)


@asynccontextmanager
async def _recorded(outcome: DailyOutcome, name: str, metrics: Metrics) -> AsyncIterator[None]:
    try:
        yield
    except KgentsError as error:
        outcome.failures[name] = str(error)
        metrics.failures.labels(name.partition(" ")[0]).inc()
        _log.error("daily.step_failed", step=name, error=str(error), hint=error.hint)
