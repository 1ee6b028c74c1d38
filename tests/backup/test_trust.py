"""What may be trusted: no clock, no lock of the dead, no store that is empty, no file that is damaged."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from tests.backup.streams import STREAM, archive, fill, make_stream, read_all

from kgents_backup.model.faults import ClockError, CorruptError, LockedError, UnrecoverableError
from kgents_backup.model.keys import SegmentName, SnapshotName
from kgents_backup.model.plan import Until
from kgents_backup.operations.pruning import prune
from kgents_backup.operations.restoring import prepare
from kgents_backup.operations.snapshotting import take_snapshot
from kgents_backup.operations.uploading import upload_missing
from kgents_backup.operations.verifying import verify
from kgents_backup.sinks.store import DirectoryStore, Lease, Sealer, Vault, locks, unlock
from kgents_backup.sinks.store.process import Process
from kgents_backup.sources.verbatim import VerbatimClient
from kgents_common.clock import SystemClock

CLOCK = SystemClock()


class Shifted(SystemClock):
    """A wall clock that is wrong; its monotonic one can be moved on."""

    def __init__(self, by: timedelta) -> None:
        self.by = by
        self.passed = 0.0

    def now(self) -> datetime:
        return super().now() + self.by

    def monotonic(self) -> float:
        return super().monotonic() + self.passed


@pytest.fixture
def offsite(tmp_path: Path) -> Vault:
    """The other store."""
    return Vault(DirectoryStore(tmp_path / "offsite", name="offsite"), Sealer())


async def test_a_clock_that_is_wrong_names_and_deletes_nothing(client: VerbatimClient, vault: Vault) -> None:
    """Rule: a snapshot by a clock other than the server's is refused, and so is what retention would do."""
    await make_stream(client)
    await fill(client, 10)
    for by in (timedelta(days=40), timedelta(days=-3)):
        with pytest.raises(ClockError, match="the server's"):
            await take_snapshot(client, vault, STREAM, clock=Shifted(by))
    assert await vault.store.list("") == []


async def test_a_snapshot_that_holds_more_wins_over_one_with_a_later_clock(
    client: VerbatimClient, vault: Vault
) -> None:
    """Rule: within a line, order is by sequence: a snapshot from a machine that was days ahead is older."""
    await make_stream(client)
    await fill(client, 100)
    early, manifest = await take_snapshot(client, vault, STREAM, clock=CLOCK)
    ahead = SnapshotName(STREAM, early.line, "20990101T000000Z", early.last, early.last_ms)
    for entry in await vault.store.list(early.prefix):
        if entry.key.endswith(".part"):
            file = entry.key.removeprefix(early.prefix)
            await vault.store.put(ahead.prefix + file, await vault.store.get(entry.key))
    fields = {f: getattr(manifest, f) for f in manifest.__struct_fields__}
    await vault.write_document(ahead.manifest_key, type(manifest)(**{**fields, "id": ahead.id}))
    await fill(client, 50, start=100)
    late, _ = await take_snapshot(client, vault, STREAM, clock=CLOCK)
    assert (await prepare(vault, STREAM, Until())).plan.snapshot == late


async def test_a_lock_whose_holder_is_dead_is_no_obstacle(tmp_path: Path) -> None:
    """Rule: a process of this machine that is gone holds nothing; a living one does; a clock that runs days
    ahead holds a lock for its length and no longer."""
    store = DirectoryStore(tmp_path)
    script = (
        "from kgents_backup.sinks.store.process import Process; import msgspec, sys;"
        "sys.stdout.buffer.write(msgspec.json.encode(Process.own()))"
    )
    said = await asyncio.to_thread(subprocess.check_output, [sys.executable, "-c", script])
    dead = msgspec.json.decode(said, type=Process)
    assert dead.is_surely_dead()
    assert not Process.own().is_surely_dead()
    until = datetime.now(UTC) + timedelta(days=3)
    content = {"owner": "gone", "token": "t", "until": until, "process": dead, "beat": 1}
    await store.put("locks/run.json", msgspec.json.encode(content))
    assert [(lock.owner, lock.is_dead) for lock in await locks(store)] == [("gone", True)]
    async with Lease(store, "run", owner="me", clock=CLOCK):
        with pytest.raises(LockedError, match="is held by me"):
            await Lease(store, "run", owner="other", clock=CLOCK).acquire()

    elsewhere = {**content, "process": None}
    await store.put("locks/run.json", msgspec.json.encode(elsewhere))
    clock = Shifted(timedelta(0))
    lease = Lease(store, "run", owner="me", clock=clock)
    with pytest.raises(LockedError, match="is held by gone") as refused:
        await lease.acquire()
    assert "kgents-backup unlock run" in str(refused.value.hint)
    clock.passed += 31
    await lease.acquire()
    await lease.release()

    await store.put("locks/run.json", msgspec.json.encode(elsewhere))
    await unlock(store, "run")
    async with Lease(store, "run", owner="me", clock=CLOCK):
        pass


async def test_whoever_has_a_wrong_clock_takes_no_lock_from_the_living(tmp_path: Path) -> None:
    """Rule: neither the holder's clock nor the reader's ends a lease; that nobody renews it does."""
    store, length = DirectoryStore(tmp_path), timedelta(seconds=1.5)
    async with Lease(store, "run", owner="living", clock=CLOCK, length=length) as living:
        ahead = Shifted(timedelta(hours=1))
        with pytest.raises(LockedError, match="held by living, which renews it: a clock is wrong"):
            await Lease(store, "run", owner="ahead", clock=ahead, length=length).acquire()
        living.check()
    gone = {"owner": "gone", "token": "t", "until": datetime.now(UTC) - timedelta(days=1), "beat": 1}
    await store.put("locks/run.json", msgspec.json.encode(gone))
    async with Lease(store, "run", owner="me", clock=CLOCK, length=length) as mine:
        mine.check()


async def test_a_damaged_file_never_replaces_a_good_one(
    client: VerbatimClient, vault: Vault, offsite: Vault
) -> None:
    """Rule: a truncated segment, part, manifest or line here leaves the copy there as it is, and is said; one
    that was cut there is written again."""
    await make_stream(client)
    await fill(client, 100)
    await take_snapshot(client, vault, STREAM, clock=CLOCK)
    await archive(client, vault)
    await upload_missing(vault, offsite)
    good = {e.key: await offsite.store.get(e.key) for e in await offsite.store.list("")}
    assert {key.partition("/")[0] for key in good} == {"lines", "segments", "snapshots", "heads"}
    whole = [key for key, data in good.items() if data]
    for key in whole:
        await vault.store.put(key, good[key][: len(good[key]) // 2])
    with pytest.raises(CorruptError, match="is damaged here"):
        await upload_missing(vault, offsite)
    assert {e.key: await offsite.store.get(e.key) for e in await offsite.store.list("")} == good
    for key in whole:
        await vault.store.put(key, good[key])
        await offsite.store.put(key, good[key][:-3])
    await upload_missing(vault, offsite)
    assert {e.key: await offsite.store.get(e.key) for e in await offsite.store.list("")} == good


async def test_damage_is_not_copied_the_first_time_either(
    client: VerbatimClient, vault: Vault, offsite: Vault
) -> None:
    """Rule: what is damaged here does not become the copy there; everything else does."""
    await make_stream(client)
    for start in (0, 10, 20):
        await fill(client, 10, start=start)
        await archive(client, vault)
    segments = (await vault.catalogue(STREAM)).newest.segments  # type: ignore[union-attr]
    data = bytearray(await vault.store.get(segments[1].key))
    data[-40] ^= 1
    await vault.store.put(segments[1].key, bytes(data))
    with pytest.raises(CorruptError, match=segments[1].key):
        await upload_missing(vault, offsite)
    there = (await offsite.catalogue(STREAM)).newest
    assert there is not None
    assert there.segments == [segments[0], segments[2]]


async def test_what_was_archived_and_is_gone_is_noticed(client: VerbatimClient, vault: Vault) -> None:
    """Rule: the newest segment lost, or the store empty, is damage and not a shorter stream."""
    await make_stream(client)
    for start in (0, 10):
        await fill(client, 10, start=start)
        await archive(client, vault)
    segments = (await vault.catalogue(STREAM)).newest.segments  # type: ignore[union-attr]
    await vault.store.delete(segments[-1].key)
    with pytest.raises(CorruptError, match="was archived to sequence 20, and nothing from 11 on is there"):
        await prepare(vault, STREAM, Until())
    assert "nothing from 11 on is there" in (await verify(vault, STREAM)).faults[0]
    prepared = await prepare(vault, STREAM, Until(), fall_back=True)
    assert prepared.plan.reaches == 10
    for entry in await vault.store.list(""):
        await vault.store.delete(entry.key)
    assert "is the store mounted?" in (await verify(vault, STREAM)).faults[0]


async def test_a_moment_before_everything_is_refused_although_there_is_an_empty_snapshot(
    client: VerbatimClient, vault: Vault
) -> None:
    """Rule: the snapshot of a stream that held nothing yet is of the moment it was taken at, not before."""
    await make_stream(client)
    await take_snapshot(client, vault, STREAM, clock=CLOCK)
    await fill(client, 5)
    await archive(client, vault)
    with pytest.raises(UnrecoverableError, match="no snapshot or segment is that old"):
        await prepare(vault, STREAM, Until.parse("2020-01-01T00:00:00Z"))


async def test_a_snapshot_that_was_found_damaged_covers_no_segment(
    client: VerbatimClient, vault: Vault
) -> None:
    """Rule: retention keeps the segments that only a damaged snapshot would stand for."""
    await make_stream(client)
    await fill(client, 100)
    await archive(client, vault)
    name, manifest = await take_snapshot(client, vault, STREAM, clock=CLOCK)
    await verify(vault, STREAM)
    key = name.prefix + manifest.parts[0].file
    data = bytearray(await vault.store.get(key))
    data[10] ^= 1
    await vault.store.put(key, bytes(data))
    assert not (await verify(vault, STREAM)).is_good
    await prune(vault, STREAM, now=CLOCK.now() + timedelta(days=30), keep=timedelta(days=7))
    left = [SegmentName.parse(e.key) for e in await vault.store.list("segments/")]
    assert len(left) == 1
    prepared = await prepare(vault, STREAM, Until(), fall_back=True)
    assert prepared.plan.reaches == 100
    assert len(await read_all(client)) == 100
