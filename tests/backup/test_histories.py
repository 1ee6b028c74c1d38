"""Random lives of a stream and its backups: no restore says success and lacks what any store still holds.

A reference keeps what was acknowledged. Before each restore to the end it is asked which of that the stream,
its kept copies, and the sound files of both stores hold; afterwards all of it must be in the stream, but for
what an earlier restore gave up on purpose. A refusal is an answer, as long as it changes nothing.

`KGENTS_HISTORIES=0:500` runs these seeds instead of the first twenty.
"""

from __future__ import annotations

import os
import random
from collections.abc import Awaitable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from tests.backup.streams import STREAM, make_stream, read_all
from tests.backup.test_restore_transaction import POINTS, Killed, die

from kgents_backup.model.faults import CorruptError
from kgents_backup.model.keys import SegmentName, SnapshotName
from kgents_backup.model.plan import Until
from kgents_backup.operations import clocks
from kgents_backup.operations.archiving import Archiver
from kgents_backup.operations.pruning import merge, prune
from kgents_backup.operations.restoring import journal
from kgents_backup.operations.restoring.transaction import Restoration, Wanted
from kgents_backup.operations.snapshotting import take_snapshot
from kgents_backup.operations.uploading import upload_missing
from kgents_backup.operations.verifying import verify
from kgents_backup.sinks.store import DirectoryStore, Sealer, UnitedVault, Vault
from kgents_backup.sources.stream import stream_info
from kgents_backup.sources.verbatim import VerbatimClient
from kgents_common.clock import SystemClock
from kgents_common.crash import CrashPoints
from kgents_common.errors import KgentsError
from kgents_common.streams import request

NAMES = [str(point.values[0]) for point in POINTS]
# What a kill -9 may meet beside a restore, and how often the point is passed before it does.
DEATHS = (
    ("archive", "archive.before_segment"),
    ("archive", "archive.after_segment"),
    ("snapshot", "snapshot.before_part"),
    ("snapshot", "snapshot.after_part"),
    ("snapshot", "snapshot.before_manifest"),
    ("snapshot", "snapshot.after_manifest"),
    ("upload", "upload.after_file"),
    ("upload", "upload.after_file:3"),
    ("upload", "upload.before_manifest"),
    ("tidy", "merge.after_merged"),
    ("tidy", "merge.after_delete"),
    ("tidy", "prune.after_manifest"),
    ("tidy", "prune.after_segment"),
)
JUMPS = (
    timedelta(0),
    timedelta(0),
    timedelta(seconds=50),
    timedelta(minutes=-5),
    timedelta(days=3),
    timedelta(days=40),
    timedelta(days=-40),
)


class JumpingClock(SystemClock):
    """The machine's clock, wrong by as much as it is told to be; its monotonic one is right."""

    wrong_by = timedelta(0)

    def now(self) -> datetime:
        """The wall clock's wrong answer."""
        return super().now() + self.wrong_by


@dataclass
class World:
    """One stream, two stores, and what is known of them."""

    client: VerbatimClient
    local: Vault
    offsite: Vault
    roll: random.Random
    clock: JumpingClock = field(default_factory=JumpingClock)
    crash: str | None = None
    number: int = 0
    acknowledged: set[bytes] = field(default_factory=set)
    given_up: set[bytes] = field(default_factory=set)
    snapshots: dict[SnapshotName, set[bytes]] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)

    async def is_open(self) -> bool:
        info = await stream_info(self.client, STREAM)
        return info is not None and info.config["subjects"] == ["agentese.>"]

    async def bodies(self, stream: str = STREAM) -> set[bytes]:
        if await stream_info(self.client, stream) is None:
            return set()
        return {m.body for m in await read_all(self.client, stream)}

    async def held(self) -> set[bytes]:
        """What of the acknowledged is anywhere."""
        found = await self.bodies()
        for name, _ in await journal.kept_streams(self.client, STREAM):
            if await journal.find(self.client, self.local, STREAM) is not None:
                found |= await self.bodies(name)
        for vault in (self.local, self.offsite):
            for entry in await vault.store.list("segments/"):
                name_ = SegmentName.parse(entry.key, entry.size)
                try:
                    assert name_ is not None
                    found |= {m.body for m in (await vault.read_segment(name_))[1]}
                except CorruptError:
                    continue
        both = UnitedVault(self.local, self.offsite)
        for snapshot, bodies in self.snapshots.items():
            try:
                for part in (await both.manifest(snapshot)).parts:
                    await both.read_part(snapshot.prefix, part)
                found |= bodies
            except CorruptError:
                continue
        return found & self.acknowledged

    async def publish(self) -> None:
        if not await self.is_open():
            return
        stream = self.client.jetstream(timeout=20)
        for _ in range(self.roll.randint(1, 25)):
            self.number += 1
            body = f"event {self.number}".encode()
            await stream.publish("agentese.acme.x", body, headers={"Nats-Msg-Id": f"id-{self.number}"})
            self.acknowledged.add(body)

    async def snapshot(self) -> None:
        try:
            await take_snapshot(self.client, self.local, STREAM, clock=self.clock, crash=self._points())
        finally:
            for name in (await self.local.catalogue(STREAM)).snapshots:
                if name not in self.snapshots:
                    self.snapshots[name] = await self.bodies()
        await verify(self.local, STREAM)

    async def archive(self) -> None:
        async def give() -> VerbatimClient:
            return self.client

        archiver = Archiver(give, self.local, STREAM, clock=self.clock, crash=self._points())
        await archiver.catch_up()
        await archiver.close()

    async def upload(self) -> None:
        await upload_missing(self.local, self.offsite, crash=self._points())

    async def jump(self) -> None:
        self.clock.wrong_by = self.roll.choice(JUMPS)
        self.told.append(f"  the clock is wrong by {self.clock.wrong_by}")

    async def die(self) -> None:
        """A run is killed at a named point; what was written until then stays."""
        name, self.crash = self.roll.choice(DEATHS)
        self.told.append(f"  {name} killed at {self.crash}")
        step: Awaitable[None] = getattr(self, name)()
        try:
            await step
        except Killed:
            self.told.append("  was killed")
        finally:
            self.crash = None

    def _points(self) -> CrashPoints:
        return CrashPoints(self.crash, die)

    async def lose(self) -> None:
        if await journal.find(self.client, self.local, STREAM) is None and await self.is_open():
            await request(self.client, f"STREAM.DELETE.{STREAM}")

    async def make(self) -> None:
        if await stream_info(self.client, STREAM) is None:
            await make_stream(self.client)

    async def damage(self) -> None:
        """One file of one store is cut, changed or lost."""
        vault = self.roll.choice([self.local, self.local, self.offsite])
        files = [e.key for e in await vault.store.list("") if e.key.startswith(("segments/", "snapshots/"))]
        if not files:
            return
        key = self.roll.choice(files)
        data = bytearray(await vault.store.get(key))
        kind = self.roll.randrange(3)
        if kind == 0 or not data:
            await vault.store.delete(key)
        elif kind == 1:
            await vault.store.put(key, bytes(data[: len(data) // 2]))
        else:
            data[self.roll.randrange(len(data))] ^= 1
            await vault.store.put(key, bytes(data))
        self.told.append(f"  damaged {vault.name} {key}")

    async def tidy(self) -> None:
        """As the daily run: merged by what this machine believes, pruned where its clock is the server's."""
        now = self.clock.now()
        await merge(
            self.local,
            STREAM,
            now=now + timedelta(hours=1),
            written_at=now.isoformat(),
            crash=self._points(),
        )
        await clocks.require(self.client, STREAM, self.clock)
        for vault in (self.local, self.offsite):
            keep = self.roll.choice([timedelta(0), timedelta(days=7)])
            await prune(vault, STREAM, now=now, keep=keep, crash=self._points())

    async def restore(self) -> None:
        """To the end, perhaps killed on the way and run again, or taken back."""
        before, held = await self.bodies(), await self.held()
        was_whole = await journal.find(self.client, self.local, STREAM) is None
        wanted = Wanted(STREAM, replace=True)
        if self.roll.random() < 0.4:
            point = self.roll.choice(NAMES)
            self.told.append(f"  killed at {point}")
            try:
                await self._restoration(point).bring_back(wanted)
            except Killed:
                if self.roll.random() < 0.4 and point != "restore.released":
                    await self._restoration().undo(STREAM)
                    assert await self.bodies() == before, "taken back is not as it was"
                    return
                if self.roll.random() < 0.3:
                    await journal.clear(self.local, STREAM)
        try:
            report = await self._restoration().bring_back(wanted)
        except KgentsError as error:
            self.told.append(f"  refused: {error}")
            if await journal.find(self.client, self.local, STREAM) is not None:
                await self._restoration().undo(STREAM)
            assert not was_whole or before <= await self.bodies(), "a refusal lost something"
            return
        lacks = (held - self.given_up) - await self.bodies()
        assert not lacks, f"success, and {len(lacks)} of {len(held)} are missing: {sorted(lacks)[:5]}"
        assert report.missing == 0
        assert await self.is_open()

    async def back(self) -> None:
        """To an earlier sequence, on purpose."""
        info = await stream_info(self.client, STREAM)
        if info is None or info.last_sequence < 2:
            return
        held = await self.held()
        until = Until(sequence=self.roll.randint(1, info.last_sequence))
        try:
            await self._restoration().bring_back(Wanted(STREAM, until, replace=True))
        except KgentsError as error:
            self.told.append(f"  refused: {error}")
            return
        self.given_up |= held - await self.bodies()

    def _restoration(self, crash: str | None = None) -> Restoration:
        both = UnitedVault(self.local, self.offsite)

        async def upload() -> None:
            await upload_missing(self.local, self.offsite)

        return Restoration(
            self.client,
            self.local,
            both,
            self.clock,
            "test",
            upload=upload if self.roll.random() < 0.5 else _nothing,
            crash=CrashPoints(crash, die),
        )


async def _nothing() -> None:
    return


STEPS = (
    ("publish", 6),
    ("archive", 4),
    ("snapshot", 2),
    ("upload", 2),
    ("lose", 2),
    ("make", 2),
    ("damage", 1),
    ("tidy", 1),
    ("restore", 4),
    ("back", 1),
    ("die", 2),
    ("jump", 1),
)


FIRST, _, END = os.environ.get("KGENTS_HISTORIES", "0:20").partition(":")


@pytest.mark.parametrize("seed", range(int(FIRST), int(END)))
async def test_no_restore_says_success_and_lacks_what_is_held(
    client: VerbatimClient, tmp_path: Path, seed: int
) -> None:
    """Rule: P7, over random lives."""
    roll = random.Random(seed)
    local = Vault(DirectoryStore(tmp_path / "local"), Sealer())
    offsite = Vault(DirectoryStore(tmp_path / "offsite", name="offsite"), Sealer())
    world = World(client, local, offsite, roll)
    await make_stream(client)
    steps = [
        "publish",
        "archive",
        *roll.choices([name for name, _ in STEPS], [weight for _, weight in STEPS], k=roll.randint(10, 24)),
    ]
    for step in [*steps, "restore"]:
        world.told.append(step)
        try:
            await getattr(world, step)()
        except KgentsError as error:  # e.g. nothing to snapshot, or damage that an upload found
            world.told.append(f"  {type(error).__name__}: {error}")
        except AssertionError as error:
            raise AssertionError("\n".join([str(error), *world.told])) from error
