"""The daily run and the running service: what is stored, what is said on EVENTS, what a failure leaves."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import cast

import httpx
import pytest
from tests.backup.streams import archive, fill, read_all

from kgents_backup.app import Backup
from kgents_backup.handlers.command.program import _parser
from kgents_backup.handlers.command.restoring import run_restore
from kgents_backup.handlers.schedule import daily, next_run
from kgents_backup.model import segment
from kgents_backup.model.faults import LockedError
from kgents_backup.operations.daily import DailyOutcome, DailyRun
from kgents_backup.operations.restoring.transaction import Means, Restoration, restoration
from kgents_backup.operations.standing import NOT_ENCRYPTED, Inspection
from kgents_backup.operations.verifying import verify
from kgents_backup.settings import BackupSettings
from kgents_backup.sinks.store import DirectoryStore, ObjectStore, Vault
from kgents_backup.sinks.store.sealing import new_key
from kgents_backup.sources.verbatim import VerbatimClient, connected
from kgents_common import streams
from kgents_common.clock import ManualClock, SystemClock
from kgents_common.errors import KgentsError, PermanentError
from kgents_common.streams import request
from kgents_devstack.servers import NatsServer, S3Server, free_port
from kgents_devstack.waiting import HANGS_AFTER_SECONDS
from kgents_devstack.waiting import reached as until


def settings_for(url: str, directory: Path, **more: object) -> BackupSettings:
    """Settings of a backup into `directory`."""
    values: dict[str, object] = {"nats_servers": url, "directory": directory, "instance": "test"}
    return BackupSettings(**(values | more))  # type: ignore[arg-type]


def offsite(server: S3Server, store: ObjectStore) -> dict[str, object]:
    """The settings of an off-site store."""
    return {
        "offsite_url": store.url,
        "s3_endpoint": server.endpoint,
        "s3_access_key": server.access_key,
        "s3_secret_key": server.secret_key,
        "s3_region": "us-east-1",
    }


@asynccontextmanager
async def opened(settings: BackupSettings) -> AsyncIterator[Backup]:
    backup = Backup(settings)
    try:
        yield backup
    finally:
        await backup.client.stop()


async def facts(client: VerbatimClient) -> dict[str, list[dict[str, object]]]:
    """What was said on `events.backup.>`, by kind."""
    found: dict[str, list[dict[str, object]]] = {}
    for message in await read_all(client, "EVENTS"):
        if message.subject.startswith("events.backup."):
            event = json.loads(message.body)
            assert event["type"] == message.subject.replace("events.", "", 1)
            found.setdefault(message.subject.removeprefix("events.backup."), []).append(event["data"])
    return found


@pytest.fixture
async def client(client: VerbatimClient) -> VerbatimClient:
    """Our two streams and their consumers, with a few messages."""
    await streams.apply(client, await streams.plan(client))
    await fill(client, 300)
    return client


async def test_a_daily_run_stores_uploads_drills_and_says_so(
    client: VerbatimClient, nats_url: str, tmp_path: Path, s3_server: S3Server, s3_store: ObjectStore
) -> None:
    """Rule: both streams are copied, read back, off-site, restored into a scratch server and compared."""
    async with opened(settings_for(nats_url, tmp_path, **offsite(s3_server, s3_store))) as backup:
        outcome = await backup.daily.run()
        assert outcome.failures == {}
        assert set(outcome.snapshots) == {"AGENTESE", "EVENTS"}
        drilled = ("AGENTESE", "EVENTS", "offsite AGENTESE", "offsite EVENTS")
        assert outcome.drills == dict.fromkeys(drilled, True)
        for vault in (backup.local, backup.vault("offsite")):
            catalogue = await vault.catalogue("AGENTESE")
            assert [s.id for s in catalogue.snapshots] == [outcome.snapshots["AGENTESE"]]
            assert catalogue.newest is not None
            assert catalogue.newest.verified == set(catalogue.snapshots)
        value = backup.registry.get_sample_value
        assert value("kgents_backup_last_success_timestamp_seconds", {"stream": "AGENTESE"})
        assert value("kgents_backup_s3_last_upload_timestamp_seconds")
        assert value("kgents_backup_drill_last_passed_timestamp_seconds", {"stream": "EVENTS"})
    said = await facts(client)
    kept = {"kept.AGENTESE", "kept.EVENTS"}
    assert set(said) == {"snapshot.completed", "verify.passed", "drill.passed", "run.completed", *kept}
    created = (await request(client, "STREAM.INFO.AGENTESE"))["created"]
    assert said["kept.AGENTESE"] == [{"created": created, "last_sequence": 300}]
    assert said["drill.passed"][0]["compared"] == 300


async def test_a_backup_that_lost_a_message_fails_its_drill(
    client: VerbatimClient, nats_url: str, tmp_path: Path
) -> None:
    """Rule: the drill compares with the live stream, so a backup that is whole but wrong does not pass."""
    async with opened(settings_for(nats_url, tmp_path, streams="AGENTESE")) as backup:
        await archive(client, backup.local)
        files = (await backup.local.catalogue("AGENTESE")).newest
        assert files is not None
        _, messages = await backup.local.read_segment(files.segments[0])
        name, data = segment.encode(
            "AGENTESE", files.line, 1, messages[:7] + messages[8:], stream_first=1, written_at=""
        )
        await backup.local.store.put(name.key, data)
        report = await verify(backup.local, "AGENTESE")
        assert report.is_good
        with pytest.raises(Exception, match=r"live messages are missing in the backup, first \[8\]"):
            await backup.daily.drill("AGENTESE")
        there = Vault(DirectoryStore(backup.settings.directory, name="offsite"), backup.local.sealer)
        with pytest.raises(Exception, match="live messages are missing in the backup"):
            await backup.daily.drill("AGENTESE", there)
        look = Inspection(
            backup.client, [backup.local, there], ("AGENTESE",), SystemClock(), has_database=False
        )
        found = await look.look()
        faults = [f.partition(" at ")[0] for f in found.faults if "drill" in f]
        assert faults == ["AGENTESE: the last drill failed", "offsite AGENTESE: the last drill failed"]
        assert len([note for note in found.notes if NOT_ENCRYPTED in note]) == 2
    assert len((await facts(client))["drill.failed"]) == 2


async def test_an_offsite_store_that_refuses_leaves_the_local_copy(
    client: VerbatimClient, nats_url: str, tmp_path: Path, s3_server: S3Server, s3_store: ObjectStore
) -> None:
    """Rule: the run names the failed step, the local backup is whole, the drill still runs."""
    wrong = offsite(s3_server, s3_store) | {"s3_secret_key": "wrong"}
    async with opened(settings_for(nats_url, tmp_path, streams="AGENTESE", **wrong)) as backup:
        outcome = await backup.daily.run()
        assert {step.split(" ")[0] for step in outcome.failures} == {"upload", "verify", "prune", "drill"}
        assert "403 Forbidden" in outcome.failures["upload"]
        assert outcome.drills == {"AGENTESE": True}
        report = await verify(backup.local, "AGENTESE")
        assert report.is_good
        assert report.snapshots == 1
    said = await facts(client)
    assert said["run.failed"]
    assert "kept.AGENTESE" not in said, "off-site, nothing is"
    assert await s3_store.list("") == []


async def test_what_was_not_read_back_whole_is_not_told_as_kept(
    client: VerbatimClient, nats_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: the stream lets nothing go because of a snapshot that nobody could verify."""

    async def damaged(*_: object, **__: object) -> None:
        raise PermanentError("damaged")

    async def drilled(*_: object) -> bool:
        return True

    monkeypatch.setattr(DailyRun, "verify", damaged)
    monkeypatch.setattr(DailyRun, "drill", drilled)
    async with opened(settings_for(nats_url, tmp_path, streams="AGENTESE")) as backup:
        assert (await backup.daily.run()).failures == {"verify AGENTESE": "damaged"}
    assert set(await facts(client)) == {"snapshot.completed", "run.failed"}


async def test_two_runs_never_mix(client: VerbatimClient, nats_url: str, tmp_path: Path) -> None:
    """Rule: the second is refused while the first holds the lock."""
    async with opened(settings_for(nats_url, tmp_path)) as backup, backup.daily.lease(backup.local):
        with pytest.raises(LockedError, match="is held by"):
            await backup.daily.run()


async def test_no_daily_run_merges_or_prunes_under_a_running_restore(
    client: VerbatimClient, nats_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: whatever the restore is at, the run is refused, and its files stay; also what undoes it."""
    settings = settings_for(nats_url, tmp_path, streams="AGENTESE")
    async with opened(settings) as backup, opened(settings) as other:
        await archive(client, backup.local)
        refused: list[str] = []

        def meanwhile(real):  # type: ignore[no-untyped-def]
            async def called(self: Means, *given: object) -> object:
                with pytest.raises(LockedError, match="the lock run is held by"):
                    await other.daily.run()
                refused.append(real.__name__)
                return await real(self, *given)

            return called

        monkeypatch.setattr(restoration, "replace", meanwhile(restoration.replace))
        monkeypatch.setattr(Restoration, "undo", meanwhile(Restoration.undo))
        assert await run_restore(backup, _parser().parse_args(["restore", "--replace"])) == 0
        with pytest.raises(KgentsError, match="no restore of AGENTESE is under way"):
            await run_restore(backup, _parser().parse_args(["restore", "--undo"]))
        assert refused == ["replace", "undo"]
        assert (await other.daily.run()).failures == {}


async def test_sealed_backups_restore_and_drill_the_same(
    client: VerbatimClient, nats_url: str, tmp_path: Path
) -> None:
    """Rule: with a key file nothing readable is stored, and everything still works."""
    keys = tmp_path / "keys"
    keys.write_text(new_key())
    keys.chmod(0o600)
    directory = tmp_path / "store"
    async with opened(settings_for(nats_url, directory, streams="AGENTESE", key_file=keys)) as backup:
        await archive(client, backup.local)
        outcome = await backup.daily.run()
        assert outcome.failures == {}
        assert not [note for note in (await backup.inspection().look()).notes if "encrypted" in note]
    stored = [p for p in directory.rglob("*") if p.is_file() and not {"locks", "heads"} & set(p.parts)]
    sealed = [p.read_bytes()[:8] for p in stored if p.name not in (".lock", "verified")]
    assert set(sealed) == {b"KGSEAL1\0"}


async def test_the_service_archives_runs_and_reports(
    own_nats: NatsServer, tmp_path: Path, s3_server: S3Server, s3_store: ObjectStore
) -> None:
    """Rule: started, it makes up for the missing run, archives on, and answers for its health; SIGTERM ends
    it with what it held stored."""
    port = free_port()
    operations_port = free_port()
    async with connected({"servers": own_nats.url}) as client:
        await streams.apply(client, await streams.plan(client))
        await fill(client, 200)
        beats = await client.subscribe("events.heartbeat.backup.>")
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "kgents_backup", "run"),
            env={
                **os.environ,
                "NATS_SERVERS": own_nats.url,
                "KGENTS_BACKUP_DIRECTORY": str(tmp_path / "store"),
                "KGENTS_BACKUP_OFFSITE_URL": s3_store.url,
                "KGENTS_BACKUP_S3_ENDPOINT": s3_server.endpoint,
                "AWS_ACCESS_KEY_ID": s3_server.access_key,
                "AWS_SECRET_ACCESS_KEY": s3_server.secret_key,
                "AWS_REGION": "us-east-1",
                "KGENTS_HOST": "127.0.0.1",
                "KGENTS_PORT": str(port),
                "KGENTS_OPERATIONS_PORT": str(operations_port),
                "KGENTS_HEARTBEAT_SECONDS": "1",
            },
            stdout=asyncio.subprocess.DEVNULL,
        )
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{operations_port}") as http:

            async def has_drilled() -> bool:
                return "run.completed" in await facts(client)

            async def is_archived() -> bool:
                text = (await http.get("/metrics")).text
                return 'kgents_backup_archive_last_sequence{stream="AGENTESE"} 250.0' in text

            try:
                await until(has_drilled)
                await fill(client, 50, start=200)
                await until(is_archived)
                document = (await http.get("/health/ready")).json()
                assert document["status"] == "ok", document
                assert "NOT encrypted" in str(document)
                assert await beats.next_msg(timeout=HANGS_AFTER_SECONDS)
                await fill(client, 7, start=250)
            finally:
                process.send_signal(signal.SIGTERM)
                assert await asyncio.wait_for(process.wait(), HANGS_AFTER_SECONDS) == 0
        stored = await s3_store.list("segments/AGENTESE/")
        assert stored
        last = (await request(client, "STREAM.INFO.AGENTESE"))["state"]["last_seq"]
        async with opened(settings_for(own_nats.url, tmp_path / "store")) as backup:
            files = (await backup.local.catalogue("AGENTESE")).newest
            assert files is not None
            assert files.archived_to >= last - 7
        locks = list((tmp_path / "store" / "locks").glob("*"))
        assert locks == []


def test_a_service_beside_a_cron_job_has_no_time_of_its_own() -> None:
    """Rule: an empty KGENTS_BACKUP_DAILY_AT is no time, so that a cluster's run is not made twice."""
    told = {"NATS_SERVERS": "nats://127.0.0.1:4222"}
    assert BackupSettings.from_environment(**told).daily_at == time(2, 0)
    assert BackupSettings.from_environment(**told, KGENTS_BACKUP_DAILY_AT="").daily_at is None


async def test_a_service_without_a_time_makes_up_for_a_run_that_is_overdue_and_for_no_other() -> None:
    """Rule: a newest snapshot of over 25 hours is a run at once; a younger one a wait, whatever the time."""
    clock = ManualClock(datetime(2026, 3, 1, 1, 59, 59, 900_000, tzinfo=UTC))
    runs: list[datetime] = []
    taken = [clock.now() - timedelta(hours=24)]

    class Runs:
        async def run(self) -> DailyOutcome:
            runs.append(clock.now())
            taken.append(clock.now())
            return DailyOutcome(snapshots={"AGENTESE": "s"})

    async def newest() -> datetime | None:
        return taken[-1]

    async def lived(moment: timedelta) -> None:
        clock.advance(moment)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.3):
                await daily(cast("DailyRun", Runs()), at=None, clock=clock, newest=newest)

    await lived(timedelta(seconds=1))
    assert runs == []
    await lived(timedelta(hours=1))
    assert runs == [clock.now()]


def test_the_daily_run_is_at_two_in_the_morning() -> None:
    """Rule: 02:00 UTC, today if it is still to come, else tomorrow."""
    at = time(2, 0)
    night = datetime(2026, 3, 1, 1, 59, tzinfo=UTC)
    assert next_run(night, at) == datetime(2026, 3, 1, 2, tzinfo=UTC)
    assert next_run(night + timedelta(minutes=1), at) == datetime(2026, 3, 2, 2, tzinfo=UTC)
