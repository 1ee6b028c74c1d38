"""A restore of a live system: whatever interrupts it, the same command goes on or takes it back."""

from __future__ import annotations

import asyncio
from argparse import Namespace
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from nats.errors import Error as NatsError
from nats.js.errors import Error as JetStreamError
from tests.backup.streams import (
    STREAM,
    add_consumer,
    archive,
    consume,
    delete,
    fill,
    make_stream,
    read_all,
)

from kgents_backup.app import Backup
from kgents_backup.handlers.command.restoring import run_restore
from kgents_backup.model.documents import ConsumerRecord
from kgents_backup.model.faults import (
    CorruptError,
    ProtocolError,
    RefusedError,
    RestoringError,
    UnrecoverableError,
)
from kgents_backup.model.keys import Line
from kgents_backup.model.plan import Until
from kgents_backup.operations import archiving
from kgents_backup.operations.archiving import Archiver
from kgents_backup.operations.restoring import Prepared, journal, keeping, prepare
from kgents_backup.operations.restoring.transaction import Restoration, Wanted
from kgents_backup.operations.snapshotting import take_snapshot
from kgents_backup.operations.uploading import upload_missing
from kgents_backup.sinks.replay import without_original_time
from kgents_backup.sinks.store import DirectoryStore, Sealer, UnitedVault, Vault
from kgents_backup.sources.stream import durable_consumers, stream_info
from kgents_backup.sources.verbatim import VerbatimClient
from kgents_common.clock import SystemClock
from kgents_common.crash import CrashPoints
from kgents_common.errors import ConfigurationError
from kgents_common.streams import request
from kgents_devstack.fixtures import remove_streams

CLOCK = SystemClock()
REPLACE = Wanted(STREAM, replace=True)
SOON = ("restore.fenced", "restore.deleted", "restore.released")  # the others are the longer proof
POINTS = [
    pytest.param(point, marks=[] if point in SOON else [pytest.mark.long])
    for point in (
        "restore.begun",
        "restore.fenced",
        "restore.archived",
        "restore.kept",
        "restore.replacing",
        "restore.deleted",
        "restore.filled",
        "restore.verified",
        "restore.released",
    )
]


class Killed(BaseException):
    """What dying is here: nothing after it runs but what Python itself cleans up."""


def die() -> None:
    raise Killed


def restoration(client: VerbatimClient, vault: Vault, *, crash: str | None = None) -> Restoration:
    """As the command puts it together."""
    return Restoration(client, vault, vault, CLOCK, "test", crash=CrashPoints(crash, die))


async def bodies(client: VerbatimClient, stream: str = STREAM) -> list[bytes]:
    """Every message's body, in order."""
    return [m.body for m in await read_all(client, stream)]


async def shown(client: VerbatimClient) -> list[tuple[int, str, bytes, bytes]]:
    """Every message, without what a restore adds."""
    return [(m.sequence, m.subject, without_original_time(m.headers), m.body) for m in await read_all(client)]


async def is_taken(client: VerbatimClient) -> bool:
    """Whether the stream takes a message."""
    try:
        await client.jetstream(timeout=2).publish("agentese.acme.probe", b"probe")
    except (NatsError, JetStreamError, TimeoutError):
        return False
    return True


@pytest.fixture(autouse=True)
async def _no_leftovers(client: VerbatimClient) -> AsyncIterator[None]:
    yield
    await remove_streams(client)


async def half_archived(client: VerbatimClient, vault: Vault) -> list[tuple[int, str, bytes, bytes]]:
    """A stream of which the archive holds 300 messages of 400; what it holds."""
    await make_stream(client)
    await add_consumer(client)
    await fill(client, 200)
    await consume(client, 50, acknowledge=50)
    await take_snapshot(client, vault, STREAM, clock=CLOCK)
    await fill(client, 100, start=200)
    await archive(client, vault)
    await fill(client, 100, start=300)
    await delete(client, 7, 250, 400)
    return await shown(client)


async def test_what_the_archive_lacks_is_archived_before_a_live_stream_is_replaced(
    each_client: VerbatimClient, vault: Vault
) -> None:
    """Rule: --replace of a live stream to the end loses nothing, although the archive was behind; the stream
    as it was is kept under another name, and its copy takes no later message."""
    before = await half_archived(each_client, vault)
    report = await restoration(each_client, vault).bring_back(REPLACE)
    # What was deleted after the snapshot, or after it was archived, comes back.
    assert [m for m in await shown(each_client) if m[0] not in (7, 250)] == before
    assert (report.live_before, report.missing) == (397, 0)
    assert await is_taken(each_client)
    await fill(each_client, 20, start=9000)
    await asyncio.sleep(0.5)
    assert [body for *_, body in before] == await bodies(each_client, report.kept)
    assert [c.ack_floor for c in await durable_consumers(each_client, STREAM)] == [50]
    await archive(each_client, vault)
    assert (await stream_info(each_client, STREAM)).config["subjects"] == ["agentese.>"]  # type: ignore[union-attr]
    assert await journal.find(each_client, vault, STREAM) is None


async def test_to_an_earlier_sequence_the_report_says_what_is_missing_and_where_it_lies(
    client: VerbatimClient, vault: Vault
) -> None:
    """Rule: one line of truth: live before, not restored, kept as."""
    before = await half_archived(client, vault)
    report = await restoration(client, vault).bring_back(Wanted(STREAM, Until(sequence=260), replace=True))
    assert (report.live_before, report.live_last) == (397, 400)
    assert report.missing == len([m for m in before if m[0] > 260])
    assert report.first_missing == 261
    assert len(await bodies(client, report.kept)) == 397
    await archive(client, vault)
    # Given up on purpose: a later restore to the end does not bring it back.
    await fill(client, 5, start=7000)
    await archive(client, vault)
    await client.jetstream().delete_stream(STREAM)
    again = await restoration(client, vault).bring_back(Wanted(STREAM))
    assert again.last_sequence == 265
    assert again.appended == 0


@pytest.mark.parametrize("is_told", [True, False], ids=["to a sequence", "to what the archive holds"])
async def test_a_consumer_that_was_further_than_what_comes_back_misses_nothing_new(
    each_client: VerbatimClient, vault: Vault, monkeypatch: pytest.MonkeyPatch, is_told: bool
) -> None:
    """Rule: what is published after a restore is delivered, at whichever sequence: the consumer had handled
    messages that are not restored, or that the archive lost with the stream."""
    await make_stream(each_client)
    await add_consumer(each_client)
    await fill(each_client, 60)
    await consume(each_client, 60, acknowledge=55)
    if is_told:
        await archive(each_client, vault)
        wanted = Wanted(STREAM, Until(sequence=50), replace=True)
    else:

        async def further(client: VerbatimClient, stream: str) -> list[ConsumerRecord]:
            return [ConsumerRecord(c.name, c.config, 90) for c in await durable_consumers(client, stream)]

        monkeypatch.setattr(archiving, "durable_consumers", further)
        await archive(each_client, vault)
        await each_client.jetstream().delete_stream(STREAM)
        wanted = Wanted(STREAM)
    report = await restoration(each_client, vault).bring_back(wanted)
    assert report.consumers == [("metering", report.last_sequence)]
    await fill(each_client, 5, start=500)
    new = report.last_sequence
    assert await consume(each_client, 5, acknowledge=5) == list(range(new + 1, new + 6))


@pytest.mark.parametrize("point", POINTS)
async def test_interrupted_anywhere_the_same_command_completes_it(
    client: VerbatimClient, vault: Vault, point: str
) -> None:
    """Rule: killed at any point, run again: everything is there, and nothing is left of the attempt."""
    before = await half_archived(client, vault)
    with pytest.raises(Killed):
        await restoration(client, vault, crash=point).bring_back(REPLACE)
    report = await restoration(client, vault).bring_back(REPLACE)
    assert [m for m in await shown(client) if m[0] not in (7, 250)] == before
    assert report.missing == 0
    assert await is_taken(client)
    assert await journal.find(client, vault, STREAM) is None
    assert len(await journal.kept_streams(client)) == 1


@pytest.mark.parametrize("point", POINTS[:-1])
async def test_interrupted_anywhere_it_can_be_taken_back(
    client: VerbatimClient, vault: Vault, point: str
) -> None:
    """Rule: --undo gives the stream as it was, at its sequences, with its consumer, open."""
    before = await half_archived(client, vault)
    with pytest.raises(Killed):
        await restoration(client, vault, crash=point).bring_back(REPLACE)
    await restoration(client, vault).undo(STREAM)
    assert await shown(client) == before
    assert [c.ack_floor for c in await durable_consumers(client, STREAM)] == [50]
    info = await stream_info(client, STREAM)
    assert info is not None
    assert info.last_sequence == 400
    assert info.config["max_age"] == 30 * 86400 * 10**9
    assert await is_taken(client)
    assert await journal.kept_streams(client) == []
    with pytest.raises(RefusedError, match="no restore of AGENTESE is under way"):
        await restoration(client, vault).undo(STREAM)


async def test_a_dry_run_of_an_undo_takes_nothing_back(
    client: VerbatimClient, vault: Vault, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rule: --dry-run changes nothing, whatever it stands beside; what contradicts itself is refused."""
    await half_archived(client, vault)
    with pytest.raises(Killed):
        await restoration(client, vault, crash="restore.filled").bring_back(REPLACE)
    record = await journal.find(client, vault, STREAM)

    async def give() -> VerbatimClient:
        return client

    backup = cast(
        "Backup", SimpleNamespace(client=give, local=vault, settings=SimpleNamespace(streams=(STREAM,)))
    )
    given = {"to": None, "line": None, "stream": None, "into": None, "replace": False, "undo": True}
    assert await run_restore(backup, Namespace(**given, dry_run=True)) == 0
    assert "is under way since" in capsys.readouterr().out
    assert await journal.find(client, vault, STREAM) == record
    for contradiction in ({"undo": False, "replace": True}, {"undo": True}):
        with pytest.raises(ConfigurationError, match="--into replaces nothing"):
            await run_restore(backup, Namespace(**{**given, **contradiction, "into": "nats://127.0.0.1:1"}))


async def test_what_is_open_again_has_its_consumers(
    each_client: VerbatimClient, vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: an --undo that is killed right after it opened the stream has nothing left to do but the copy:
    an open stream is nobody's restore any more."""
    before = await half_archived(each_client, vault)
    await add_consumer(each_client, "facts", filter_subject="agentese.acme.llm.3")
    consumers = await durable_consumers(each_client, STREAM)
    with pytest.raises(Killed):
        await restoration(each_client, vault, crash="restore.filled").bring_back(REPLACE)
    asked = keeping.request

    async def killed_when_open(client: VerbatimClient, api: str, payload: Any = None, **options: Any) -> Any:
        answer = await asked(client, api, payload, **options)
        if api == f"STREAM.UPDATE.{STREAM}" and payload["subjects"] == ["agentese.>"]:
            raise Killed
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(keeping, "request", killed_when_open)
        with pytest.raises(Killed):
            await restoration(each_client, vault).undo(STREAM)
    assert await shown(each_client) == before
    made = await durable_consumers(each_client, STREAM)
    assert [(c.name, c.ack_floor) for c in made] == [(c.name, c.ack_floor) for c in consumers]
    with pytest.raises(RefusedError, match="is open and takes messages"):
        await restoration(each_client, vault).undo(STREAM)


@pytest.mark.parametrize("was_archived", [False, True], ids=["by this release", "by the one before"])
async def test_what_was_taken_back_can_be_lost_again(
    client: VerbatimClient, vault: Vault, monkeypatch: pytest.MonkeyPatch, was_archived: bool
) -> None:
    """Rule: while it is taken back the stream is a mirror of its copy for a moment: nobody archives that.
    Where the release before did, a restore takes the stream's own configuration."""
    before = await half_archived(client, vault)
    with pytest.raises(Killed):
        await restoration(client, vault, crash="restore.filled").bring_back(REPLACE)
    same = keeping._same

    async def meanwhile(asked: VerbatimClient, origin: str, mirror: str) -> None:
        await same(asked, origin, mirror)
        if mirror == STREAM:
            with monkeypatch.context() as patch:
                if was_archived:
                    patch.setattr(archiving, "is_closed", lambda _: False)
                    await archive(client, vault)
                else:
                    with pytest.raises(RestoringError):
                        await archive(client, vault)

    monkeypatch.setattr(keeping, "_same", meanwhile)
    await restoration(client, vault).undo(STREAM)
    await archive(client, vault)
    await client.jetstream().delete_stream(STREAM)
    await restoration(client, vault).bring_back(Wanted(STREAM))
    assert [m for m in await shown(client) if m[0] != 7] == [m for m in before if m[0] != 7]
    info = await stream_info(client, STREAM)
    assert info is not None
    assert info.config["subjects"] == ["agentese.>"]
    assert info.config["max_age"] == 30 * 86400 * 10**9
    assert await is_taken(client)


async def test_a_line_of_the_same_messages_is_not_noted(each_client: VerbatimClient, vault: Vault) -> None:
    """Rule: a stream that was taken back is archived anew on a line of its own; a plan tells of another
    only where that may hold something which is wanted and left out."""
    await half_archived(each_client, vault)
    with pytest.raises(Killed):
        await restoration(each_client, vault, crash="restore.deleted").bring_back(REPLACE)
    await restoration(each_client, vault).undo(STREAM)
    between = CLOCK.now()
    await archive(each_client, vault)
    old, new = (await vault.catalogue(STREAM)).lines
    bounded = (Until(sequence=100), Until(sequence=300), Until(time=between))

    async def notes(until: Until, line: Line | None = None) -> tuple[str, ...]:
        return (await prepare(vault, STREAM, until, line=line)).notes

    assert [await notes(Until(), line) for line in (None, old, new)] == [(), (), ()]
    assert [await notes(until) for until in bounded] == [(), (), ()]
    await fill(each_client, 10, start=5000)
    await archive(each_client, vault)
    assert [await notes(until) for until in bounded] == [(), (), ()]
    assert (await notes(Until(), old)) == (
        f"line {new} may hold other messages, up to sequence 410: not restored",
    )


async def test_on_every_server_it_goes_on_and_can_be_taken_back_after_the_stream_was_deleted(
    each_client: VerbatimClient, vault: Vault
) -> None:
    """Rule: the worst point, on the oldest server and the current one."""
    before = await half_archived(each_client, vault)
    for point in ("restore.deleted", "restore.filled"):
        with pytest.raises(Killed):
            await restoration(each_client, vault, crash=point).bring_back(REPLACE)
        await restoration(each_client, vault).undo(STREAM)
        assert await shown(each_client) == before
        with pytest.raises(Killed):
            await restoration(each_client, vault, crash=point).bring_back(REPLACE)
        await restoration(each_client, vault).bring_back(REPLACE)
        found = await shown(each_client)
        assert [m for m in found if m[0] not in (7, 250)] == before
        before = found


async def test_the_record_is_found_in_the_streams_where_the_store_lost_it(
    client: VerbatimClient, vault: Vault
) -> None:
    """Rule: fenced, deleted or half filled, the server itself says that a restore is under way."""
    before = await half_archived(client, vault)
    for point in ("restore.fenced", "restore.deleted", "restore.filled"):
        with pytest.raises(Killed):
            await restoration(client, vault, crash=point).bring_back(REPLACE)
        await journal.clear(vault, STREAM)
        record = await journal.find(client, vault, STREAM)
        assert record is not None
        assert record.is_before_replacing == (point == "restore.fenced")
        await restoration(client, vault).undo(STREAM)
        assert await shown(client) == before


async def test_archiver_and_snapshots_leave_a_restoring_stream_alone(
    client: VerbatimClient, vault: Vault
) -> None:
    """Rule: no line is opened on a half restored stream, and no fence's configuration recorded."""
    await half_archived(client, vault)
    lines = list((await vault.catalogue(STREAM)).lines)
    for point in ("restore.fenced", "restore.filled"):
        with pytest.raises(Killed):
            await restoration(client, vault, crash=point).bring_back(REPLACE)

        async def give() -> VerbatimClient:
            return client

        with pytest.raises(RestoringError, match="is being restored"):
            await Archiver(give, vault, STREAM, clock=CLOCK).run()
        with pytest.raises(RestoringError, match="is being restored"):
            await take_snapshot(client, vault, STREAM, clock=CLOCK)
        assert list((await vault.catalogue(STREAM)).lines) == lines
    report = await restoration(client, vault).bring_back(REPLACE)
    assert report.missing == 0
    for line in (await vault.catalogue(STREAM)).lines:
        record = await vault.line(STREAM, line)
        assert record is not None
        assert record.config["subjects"] == ["agentese.>"]


async def test_a_plan_that_fails_leaves_the_stream_open(client: VerbatimClient, vault: Vault) -> None:
    """Rule: what cannot be restored is said before anything is closed, or the stream is opened again."""
    await half_archived(client, vault)
    segments = (await vault.catalogue(STREAM)).newest.segments  # type: ignore[union-attr]
    data = await vault.store.get(segments[-1].key)
    await vault.store.put(segments[-1].key, data[:-9])
    with pytest.raises(CorruptError, match="its digest does not match"):
        await restoration(client, vault).bring_back(REPLACE)
    assert await is_taken(client)
    await vault.store.put(segments[-1].key, data)
    with pytest.raises(UnrecoverableError, match="up to sequence 399"):
        await restoration(client, vault).bring_back(Wanted(STREAM, Until(sequence=10_000), replace=True))
    assert await is_taken(client)
    assert await journal.find(client, vault, STREAM) is None


async def test_an_archive_that_lost_its_beginning_replaces_no_stream_and_brings_back_none_as_whole(
    client: VerbatimClient, vault: Vault
) -> None:
    """Rule: what stood before the first stored segment is missed, live or lost; --fall-back does without."""
    await make_stream(client)
    await fill(client, 30)
    await archive(client, vault)
    await fill(client, 20, start=30)
    await archive(client, vault)
    whole = await bodies(client)
    first = min((await vault.catalogue(STREAM)).newest.segments)  # type: ignore[union-attr]
    await vault.store.delete(first.key)
    with pytest.raises(CorruptError, match="sequences 1 to 30"):
        await restoration(client, vault).bring_back(REPLACE)
    assert await is_taken(client)
    assert (await bodies(client))[:50] == whole
    await client.jetstream().delete_stream(STREAM)
    with pytest.raises(CorruptError, match="sequences 1 to 30"):
        await restoration(client, vault).bring_back(Wanted(STREAM))
    await restoration(client, vault).bring_back(Wanted(STREAM, fall_back=True))
    assert (await bodies(client))[:20] == whole[30:]


async def test_a_restore_to_the_end_opens_no_stream_that_lacks_what_it_had(
    client: VerbatimClient, vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: whatever the plan overlooked, the copy of the stream as it was shows it; it can be taken back."""
    await make_stream(client)
    await fill(client, 30)
    await archive(client, vault)
    whole = await bodies(client)
    to_20 = Until(sequence=20)

    async def overlooked(self: Restoration, wanted: Wanted, **_: object) -> Prepared:
        return await prepare(self.source, wanted.stream, to_20)

    monkeypatch.setattr(Restoration, "prepare", overlooked)
    with pytest.raises(
        ProtocolError, match="10 messages that the stream held are in no backup, the first at 21"
    ):
        await restoration(client, vault).bring_back(REPLACE)
    assert not await is_taken(client)
    await restoration(client, vault).undo(STREAM)
    assert await bodies(client) == whole
    assert await is_taken(client)


async def test_a_stream_made_anew_after_a_loss_does_not_hide_the_old_one(
    each_client: VerbatimClient, vault: Vault
) -> None:
    """Rule: lost, made anew by the deployment, written to: a restore brings the old events back and keeps
    the new ones, which stand after them."""
    await make_stream(each_client)
    await fill(each_client, 150)
    await take_snapshot(each_client, vault, STREAM, clock=CLOCK)
    await fill(each_client, 50, start=150)
    await archive(each_client, vault)
    old = await bodies(each_client)
    await each_client.jetstream().delete_stream(STREAM)
    await asyncio.sleep(0.01)
    await make_stream(each_client)
    await fill(each_client, 40, start=5000)
    new = await bodies(each_client)
    report = await restoration(each_client, vault).bring_back(REPLACE)
    assert await bodies(each_client) == old + new
    assert (report.appended, report.missing, report.messages) == (40, 0, 240)
    # And again: what was put together is one history now.
    await archive(each_client, vault)
    await each_client.jetstream().delete_stream(STREAM)
    again = await restoration(each_client, vault).bring_back(Wanted(STREAM))
    assert await bodies(each_client) == old + new
    assert again.appended == 0


@pytest.mark.parametrize("held", ["nothing ever", "nothing any more", "a deleted end"])
async def test_a_snapshot_of_a_stream_made_anew_does_not_refuse_what_was_lost(
    client: VerbatimClient, vault: Vault, held: str
) -> None:
    """Rule: what a line never held, or what was deleted before its snapshot, is missing nowhere: the lost
    stream comes back by the command, with what the new one holds."""
    await make_stream(client)
    await fill(client, 30)
    await archive(client, vault)
    old = await bodies(client)
    await client.jetstream().delete_stream(STREAM)
    await asyncio.sleep(0.01)
    await make_stream(client)
    if held != "nothing ever":
        await fill(client, 10, start=5000)
    if held == "nothing any more":
        await client.jetstream().purge_stream(STREAM)
    if held == "a deleted end":
        await delete(client, 9, 10)
    new = await bodies(client) if held == "a deleted end" else []
    await take_snapshot(client, vault, STREAM, clock=CLOCK)
    await archive(client, vault)
    report = await restoration(client, vault).bring_back(REPLACE)
    assert await bodies(client) == old + new
    assert (report.missing, report.appended) == (0, len(new))


async def test_a_line_that_an_older_release_opened_on_a_half_restored_stream_does_not_win(
    client: VerbatimClient, vault: Vault
) -> None:
    """Rule: the line with everything is restored, with the stream's own configuration, not the newest."""
    await make_stream(client)
    await fill(client, 300)
    await archive(client, vault)
    whole = await bodies(client)
    config = (await stream_info(client, STREAM)).config  # type: ignore[union-attr]
    await client.jetstream().delete_stream(STREAM)
    await asyncio.sleep(0.01)
    # As the release before left it: half of the messages, behind a fence, archived by its archiver.
    await make_stream(client, subjects=["agentese.>"])
    await fill(client, 120)
    await archive(client, vault)
    newest = max((await vault.catalogue(STREAM)).lines)
    record = await vault.line(STREAM, newest)
    assert record is not None
    fenced = {**config, "subjects": ["kgents.restore.AGENTESE-1a2b3c4d.>"]}
    fields = {f: getattr(record, f) for f in record.__struct_fields__}
    await vault.write_document(f"lines/{STREAM}/{newest}.json", type(record)(**{**fields, "config": fenced}))
    update = {**fenced, "subject_transform": {"src": "kgents.restore.AGENTESE-1a2b3c4d.>", "dest": ">"}}
    await request(client, f"STREAM.UPDATE.{STREAM}", update)

    report = await restoration(client, vault).bring_back(REPLACE)
    assert await bodies(client) == whole
    assert report.appended == 0
    info = await stream_info(client, STREAM)
    assert info is not None
    assert info.config["subjects"] == ["agentese.>"]


async def test_a_stream_that_somebody_made_while_a_restore_was_interrupted_is_not_lost(
    client: VerbatimClient, vault: Vault
) -> None:
    """Rule: in the gap, the deployment made the stream again and it took events: they are kept."""
    await half_archived(client, vault)
    with pytest.raises(Killed):
        await restoration(client, vault, crash="restore.deleted").bring_back(REPLACE)
    await make_stream(client)
    await fill(client, 9, start=8000)
    new = await bodies(client)
    report = await restoration(client, vault).bring_back(REPLACE)
    assert (await bodies(client))[-9:] == new
    assert report.appended == 9


async def test_an_empty_streams_snapshot_comes_back(each_client: VerbatimClient, vault: Vault) -> None:
    """Rule: a new installation can be restored from its first snapshot on, on every server."""
    await make_stream(each_client)
    await take_snapshot(each_client, vault, STREAM, clock=CLOCK)
    await each_client.jetstream().delete_stream(STREAM)
    report = await restoration(each_client, vault).bring_back(Wanted(STREAM))
    assert report.messages == 0
    assert await is_taken(each_client)


async def test_what_one_store_lacks_comes_from_the_other(
    client: VerbatimClient, vault: Vault, tmp_path: Path
) -> None:
    """Rule: a damaged or missing file here is read there; only what both lack is an error."""
    await half_archived(client, vault)
    await archive(client, vault)
    whole = await bodies(client)
    offsite = Vault(DirectoryStore(tmp_path / "offsite", name="offsite"), Sealer())
    await upload_missing(vault, offsite)
    segments = sorted((await vault.catalogue(STREAM)).newest.segments)  # type: ignore[union-attr]
    await vault.store.delete(segments[-1].key)
    data = await vault.store.get(segments[0].key)
    await vault.store.put(segments[0].key, data[:-9])
    await client.jetstream().delete_stream(STREAM)
    both = Restoration(client, vault, UnitedVault(vault, offsite), CLOCK, "test")
    await both.bring_back(Wanted(STREAM))
    assert [b for b in await bodies(client) if b in set(whole)] == whole
