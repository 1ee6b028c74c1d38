"""kill -9 at every named point of backup, archive, merge, prune and upload: the store stays consistent.

Most are the longer proof: the random histories die at the same points, in one process.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.backup.commands import Commands
from tests.backup.conftest import open_s3
from tests.backup.streams import STREAM, archive, delete, fill, make_stream, read_all

from kgents_backup.model.plan import Until
from kgents_backup.operations.pruning import prune
from kgents_backup.operations.restoring import prepare, restore
from kgents_backup.operations.snapshotting import take_snapshot
from kgents_backup.operations.verifying import verify
from kgents_backup.sinks.store import DirectoryStore, Sealer, Vault
from kgents_backup.sources.verbatim import VerbatimClient, connected
from kgents_common.clock import SystemClock
from kgents_devstack.servers import NatsServer, S3Server


def point(command: str, name: str, *, is_long: bool = True) -> object:
    """A case; most are part of the longer proof."""
    return pytest.param(command, name, id=name, marks=[pytest.mark.long] if is_long else [])


POINTS = [
    point("snapshot", "snapshot.before_part"),
    point("snapshot", "snapshot.after_part:2"),
    point("snapshot", "snapshot.before_manifest", is_long=False),
    point("snapshot", "snapshot.after_manifest"),
    point("archive --once", "archive.before_segment"),
    point("archive --once", "archive.after_segment"),
    point("daily", "merge.after_merged"),
    point("daily", "merge.after_delete:3"),
    point("prune", "prune.after_manifest"),
    point("prune", "prune.after_segment:2"),
]


@pytest.fixture
async def client(own_nats: NatsServer) -> AsyncIterator[VerbatimClient]:
    """A client of a server of this test's own."""
    async with connected({"servers": own_nats.url}) as found:
        yield found


@pytest.mark.parametrize(("command", "crash"), POINTS)
async def test_a_killed_run_leaves_a_good_store_and_the_next_one_completes(
    client: VerbatimClient, own_nats: NatsServer, tmp_path: Path, command: str, crash: str
) -> None:
    """Rule: what is published stays good and whole; garbage is cleared; the next run does the work."""
    run = Commands(own_nats.url, tmp_path / "store", KGENTS_BACKUP_STREAMS=STREAM)
    await make_stream(client)
    vault = Vault(DirectoryStore(tmp_path / "store"), Sealer())
    clock = SystemClock()
    await fill(client, 4500, size=2000)
    await take_snapshot(client, vault, STREAM, clock=clock)
    for start in (20_000, 30_000, 40_000, 50_000):
        await fill(client, 20, start=start)
        if start == 20_000:
            await delete(client, 4505)
        await archive(client, vault)
    await fill(client, 20, start=60_000)
    old = timedelta(days=20)
    if command == "prune":
        await asyncio.sleep(1.1)
        await take_snapshot(client, vault, STREAM, clock=clock)
        await age(tmp_path / "store", old)
        await fill(client, 20, start=70_000)
        await asyncio.sleep(1.1)
        await take_snapshot(client, vault, STREAM, clock=clock)
        await verify(vault, STREAM)
    if command == "daily":
        await age(tmp_path / "store", timedelta(hours=1))
    await asyncio.sleep(1.1)  # snapshots are named by the second

    code, said = await run(command, KGENTS_CRASH_AT=crash)
    assert code == -signal.SIGKILL, said

    report = await verify(vault, STREAM, mark=False)
    assert report.is_good, report.faults
    await prepare(vault, STREAM, Until())
    # The dead run's lock is no obstacle: its process ran here, and is gone.
    code, said = await run(command)
    assert code == 0, said
    await archive(client, vault)
    await prune(vault, STREAM, now=clock.now(), keep=timedelta(days=7))
    before = await read_all(client)
    report = await verify(vault, STREAM, mark=False)
    assert report.is_good, report.faults
    assert (await vault.catalogue(STREAM)).unfinished == []
    await restore(client, vault, await prepare(vault, STREAM, Until()), clock=clock, replace=True)
    after = await read_all(client)
    assert [(m.sequence, m.subject, m.body) for m in after] == [
        (m.sequence, m.subject, m.body) for m in before
    ]


@pytest.mark.parametrize(
    "crash", [pytest.param("upload.after_file:2", marks=pytest.mark.long), "upload.before_manifest"]
)
async def test_a_killed_upload_publishes_nothing_half(
    client: VerbatimClient, own_nats: NatsServer, s3_server: S3Server, tmp_path: Path, crash: str
) -> None:
    """Rule: off-site, a snapshot without its manifest is none; the next upload completes it."""
    there = open_s3(s3_server)
    await there.put("made", b"")
    run = Commands(
        own_nats.url,
        tmp_path / "store",
        KGENTS_BACKUP_STREAMS=STREAM,
        KGENTS_BACKUP_OFFSITE_URL=there.url,
        KGENTS_BACKUP_S3_ENDPOINT=s3_server.endpoint,
        AWS_ACCESS_KEY_ID=s3_server.access_key,
        AWS_SECRET_ACCESS_KEY=s3_server.secret_key,
        AWS_REGION="us-east-1",
    )
    await make_stream(client)
    await fill(client, 5000, size=2000)
    code, said = await run("snapshot", KGENTS_CRASH_AT=crash)
    assert code == -signal.SIGKILL, said
    offsite = Vault(there, Sealer())
    assert (await offsite.catalogue(STREAM)).snapshots == []
    code, said = await run("upload")
    assert code == 0, said
    assert len((await offsite.catalogue(STREAM)).snapshots) == 1
    report = await verify(offsite, STREAM)
    assert report.is_good, report.faults
    code, said = await run("restore --store offsite --replace")
    assert code == 0, said
    assert len(await read_all(client)) == 5000


async def age(directory: Path, by: timedelta) -> None:
    """Rename everything but the newest segment so that it looks that much older."""
    store = DirectoryStore(directory)
    vault = Vault(store, Sealer())
    catalogue = await vault.catalogue(STREAM)
    for files in catalogue.lines.values():
        for segment in files.segments[:-1]:  # the newest says which history this is
            shift = int(by.total_seconds() * 1000)
            moved = type(segment)(
                segment.stream,
                segment.line,
                segment.first,
                segment.last,
                segment.first_ms - shift,
                segment.last_ms - shift,
            )
            await store.put(moved.key, await store.get(segment.key))
            await store.delete(segment.key)
        for snapshot in files.snapshots:
            manifest = await vault.manifest(snapshot)
            at = (datetime.now(UTC) - by).strftime("%Y%m%dT%H%M%SZ")
            moved_snapshot = type(snapshot)(
                snapshot.stream,
                snapshot.line,
                at,
                snapshot.last,
                snapshot.last_ms,
            )
            for entry in await store.list(snapshot.prefix):
                name = entry.key.removeprefix(snapshot.prefix)
                if name.endswith(".part"):
                    await store.put(moved_snapshot.prefix + name, await store.get(entry.key))
                await store.delete(entry.key)
            fields = {f: getattr(manifest, f) for f in manifest.__struct_fields__}
            await vault.write_document(
                moved_snapshot.manifest_key, type(manifest)(**{**fields, "id": moved_snapshot.id})
            )
