"""Restores: from a snapshot, to a moment, over gaps and damage; every message compared."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest
from tests.backup.streams import (
    STREAM,
    add_consumer,
    archive,
    consume,
    delete,
    fill,
    make_stream,
    read_all,
    shown,
)

from kgents_backup.handlers.command.program import _parser
from kgents_backup.model import moments
from kgents_backup.model.faults import CorruptError, RefusedError, UnrecoverableError
from kgents_backup.model.plan import Until
from kgents_backup.model.ports import NoProgress
from kgents_backup.operations.restoring import RestoreReport, prepare, restore
from kgents_backup.operations.snapshotting import take_snapshot
from kgents_backup.sinks.replay import without_original_time
from kgents_backup.sinks.store import Vault
from kgents_backup.sources.stream import durable_consumers, stream_info
from kgents_backup.sources.verbatim import VerbatimClient
from kgents_common.clock import SystemClock
from kgents_common.streams import request, server_version
from kgents_devstack.raw_nats import UNREADABLE_HEADERS, UNREADABLE_SUBJECTS, RawPublisher

CLOCK = SystemClock()


async def lose_and_restore(
    client: VerbatimClient, vault: Vault, until: str | None = None, *, fall_back: bool = False
) -> RestoreReport:
    """Delete the stream, then restore it."""
    await client.jetstream().delete_stream(STREAM)
    prepared = await prepare(vault, STREAM, Until.parse(until), fall_back=fall_back)
    return await restore(client, vault, prepared, clock=CLOCK)


async def test_a_snapshot_brings_everything_back_and_consumers_go_on(
    each_client: VerbatimClient, vault: Vault
) -> None:
    """Rule: every sequence, subject, header, time and body is the same; a consumer half way goes on there."""
    await make_stream(each_client)
    await add_consumer(each_client)
    await fill(each_client, 3000, size=1000)
    await delete(each_client, 1, 700, 3000)
    handled = await consume(each_client, 1000, acknowledge=1000)
    before = await read_all(each_client)
    config = (await request(each_client, f"STREAM.INFO.{STREAM}"))["config"]
    await take_snapshot(each_client, vault, STREAM, clock=CLOCK)

    report = await lose_and_restore(each_client, vault)

    assert await read_all(each_client) == before
    assert report.physical == report.messages == len(before)
    assert report.last_sequence == 3000
    after = (await request(each_client, f"STREAM.INFO.{STREAM}"))["config"]
    assert {k: v for k, v in after.items() if k != "metadata"} == {
        k: v for k, v in config.items() if k != "metadata"
    }
    rest = await consume(each_client, len(before) - 1000, acknowledge=0)
    assert rest[0] == handled[-1] + 1
    assert handled + rest == [m.sequence for m in before]
    await fill(each_client, 1, start=9000)
    assert (await stream_info(each_client, STREAM)).last_sequence == 3001  # type: ignore[union-attr]


async def test_the_tail_after_the_snapshot_comes_back_at_its_sequences(
    each_client: VerbatimClient, vault: Vault
) -> None:
    """Rule: snapshot, then segments; gaps stay gaps; the original time is in a header where the server's
    cannot be kept."""
    await make_stream(each_client)
    await add_consumer(each_client)
    await fill(each_client, 500)
    await consume(each_client, 200, acknowledge=150)
    await take_snapshot(each_client, vault, STREAM, clock=CLOCK)
    await fill(each_client, 1500, start=500)
    await delete(each_client, *range(600, 650), 1000, 1999)
    await archive(each_client, vault)
    before = await read_all(each_client)

    report = await lose_and_restore(each_client, vault)

    after = await read_all(each_client)
    assert after[:500] == before[:500]
    plain = [(m.sequence, m.subject, without_original_time(m.headers), m.body) for m in after]
    assert plain == shown(before)
    said = [m.headers.split(b"Kgents-Original-Time: ")[1].split(b"\r\n")[0].decode() for m in after[500:]]
    assert [moments.to_nanoseconds(t) for t in said] == [m.time for m in before[500:]]
    assert (report.physical, report.replayed) == (500, len(before) - 500)
    assert report.last_sequence == 2000
    assert [c.ack_floor for c in await durable_consumers(each_client, STREAM)] == [150]
    info = await request(each_client, f"STREAM.INFO.{STREAM}")
    assert info["config"]["subjects"] == ["agentese.>"]
    assert not info["config"].get("subject_transform")


async def test_what_nobody_can_read_is_archived_and_comes_back_whole(
    each_client: VerbatimClient, vault: Vault
) -> None:
    """Rule: a subject that is not text and a header block that is none are kept as their bytes, in snapshot,
    segments and restore."""
    await make_stream(each_client)
    kinds: list[tuple[bytes, bytes | None]] = [(b"agentese.acme." + t, None) for t in UNREADABLE_SUBJECTS]
    kinds += [(b"agentese.acme.t", block) for block in UNREADABLE_HEADERS]
    for times in (1, 2):
        async with RawPublisher(each_client.connected_url.geturl()) as raw:  # type: ignore[union-attr]
            for number, (subject, block) in enumerate(kinds):
                raw.publish(subject, b"%d" % number, block)
            await raw.settle()
        while not await _holds(each_client, times * len(kinds)):
            await asyncio.sleep(0.02)
        if times == 1:
            await take_snapshot(each_client, vault, STREAM, clock=CLOCK)
    await archive(each_client, vault)
    before = await read_all(each_client)
    assert {m.subject_bytes for m in before} == {subject for subject, _ in kinds}

    await lose_and_restore(each_client, vault)

    after = await read_all(each_client)
    plain = [(m.sequence, m.subject, without_original_time(m.headers), m.body) for m in after]
    assert plain == shown(before)


async def test_a_message_to_a_literal_wildcard_keeps_no_stream_from_coming_back(
    each_client: VerbatimClient, vault: Vault
) -> None:
    """Rule: a server stores what was sent to `agentese.acme.*`; a restore brings it back as `%2A`."""
    await make_stream(each_client)
    subjects = [
        b"agentese.acme.t",
        b"agentese.acme.*",
        b"agentese.acme.llm.>",
        b"agentese.*.t",
        b"agentese.acme.a*b",
    ]
    for times in (1, 2):
        async with RawPublisher(each_client.connected_url.geturl()) as raw:  # type: ignore[union-attr]
            for number, subject in enumerate(subjects):
                raw.publish(subject, b"%d" % number, None)
            await raw.settle()
        while not await _holds(each_client, times * len(subjects)):
            await asyncio.sleep(0.02)
        if times == 1:
            await take_snapshot(each_client, vault, STREAM, clock=CLOCK)
    await archive(each_client, vault)
    before = await read_all(each_client)

    await lose_and_restore(each_client, vault)

    after = await read_all(each_client)
    assert [(m.sequence, m.restored_subject, m.body) for m in after] == [
        (m.sequence, m.restored_subject, m.body) for m in before
    ]
    assert [m.subject for m in after[len(subjects) :]] == [
        "agentese.acme.t",
        "agentese.acme.%2A",
        "agentese.acme.llm.%3E",
        "agentese.%2A.t",
        "agentese.acme.a*b",
    ]


async def _holds(client: VerbatimClient, count: int) -> bool:
    return (await request(client, f"STREAM.INFO.{STREAM}"))["state"]["messages"] == count


async def test_to_a_moment_between_two_snapshots_to_the_message(client: VerbatimClient, vault: Vault) -> None:
    """Rule: the last message not after the moment is in, the next one is not."""
    await make_stream(client)
    await fill(client, 100)
    await take_snapshot(client, vault, STREAM, clock=CLOCK)
    await fill(client, 100, start=100)
    await asyncio.sleep(1.1)  # snapshots are named by the second
    await archive(client, vault)
    await fill(client, 50, start=200)
    await take_snapshot(client, vault, STREAM, clock=CLOCK)
    await archive(client, vault)
    before = await read_all(client)
    wanted = datetime.fromtimestamp(before[149].time / 1e9, UTC)
    moment = moments.from_nanoseconds(before[149].time // 1000 * 1000 + 1000)[:26] + "Z"
    assert abs(datetime.fromisoformat(moment).timestamp() - wanted.timestamp()) < 0.01

    kept = sum(1 for m in before if m.time <= moments.of(datetime.fromisoformat(moment)))
    report = await lose_and_restore(client, vault, moment)

    after = await read_all(client)
    assert 150 <= kept < 200
    assert [m.body for m in after] == [m.body for m in before[:kept]]
    assert report.last_sequence == kept
    assert report.physical == 100


@pytest.mark.parametrize("sequence", [1, 99, 100, 101, 175])
async def test_to_a_sequence(client: VerbatimClient, vault: Vault, sequence: int) -> None:
    """Rule: any stored sequence can be the last one, before a snapshot, at it, or after."""
    await make_stream(client)
    await fill(client, 60)
    await archive(client, vault)
    await fill(client, 40, start=60)
    await take_snapshot(client, vault, STREAM, clock=CLOCK)
    await fill(client, 100, start=100)
    await archive(client, vault)
    before = await read_all(client)
    report = await lose_and_restore(client, vault, str(sequence))
    assert [m.body for m in await read_all(client)] == [m.body for m in before[:sequence]]
    assert report.last_sequence == sequence


async def test_what_was_never_stored_cannot_be_asked_for(client: VerbatimClient, vault: Vault) -> None:
    """Rule: a moment before everything, or a sequence after it, is refused with what there is."""
    await make_stream(client)
    await fill(client, 10)
    await archive(client, vault)
    with pytest.raises(UnrecoverableError, match="up to sequence 10"):
        await prepare(vault, STREAM, Until.parse("11"))
    with pytest.raises(UnrecoverableError, match="no snapshot or segment is that old"):
        await prepare(vault, STREAM, Until.parse("2020-01-01T00:00:00Z"))
    with pytest.raises(UnrecoverableError, match="nothing is stored of EVENTS"):
        await prepare(vault, "EVENTS", Until())


async def test_a_live_stream_is_refused_unless_told(client: VerbatimClient, vault: Vault) -> None:
    """Rule: nothing is overwritten without --replace."""
    await make_stream(client)
    await fill(client, 10)
    await take_snapshot(client, vault, STREAM, clock=CLOCK)
    await fill(client, 5, start=10)
    prepared = await prepare(vault, STREAM, Until())
    with pytest.raises(RefusedError, match="there is a stream AGENTESE with 15 messages"):
        await restore(client, vault, prepared, clock=CLOCK)
    assert len(await read_all(client)) == 15
    await restore(client, vault, prepared, clock=CLOCK, replace=True)
    assert len(await read_all(client)) == 10


async def test_into_another_name_the_live_stream_is_not_touched(
    each_client: VerbatimClient, vault: Vault
) -> None:
    """Rule: --into NAME stands beside the live stream and hears none of its messages; a server that cannot
    (2.10) is a refusal with another way."""
    client = each_client
    await make_stream(client)
    await fill(client, 30)
    await take_snapshot(client, vault, STREAM, clock=CLOCK)
    await fill(client, 30, start=30)
    await archive(client, vault)
    before = await read_all(client)
    prepared = await prepare(vault, STREAM, Until())
    if server_version(client) < (2, 11):
        with pytest.raises(RefusedError, match="under another name"):
            await restore(client, vault, prepared, clock=CLOCK, into="LOOK")
        assert await read_all(client) == before
        assert await stream_info(client, "LOOK") is None
        return
    await restore(client, vault, prepared, clock=CLOCK, into="LOOK")
    await fill(client, 1, start=60)
    found = await read_all(client, "LOOK")
    assert [(m.sequence, m.subject, m.body) for m in found] == [
        (m.sequence, m.subject, m.body) for m in before
    ]
    assert len(await read_all(client)) == 61


async def test_what_a_killed_restore_beside_left_is_removed_by_the_next(
    client: VerbatimClient, vault: Vault
) -> None:
    """Rule: interrupted, it is run again; only what nobody but a restore fills is removed."""
    await make_stream(client)
    await fill(client, 30)
    await take_snapshot(client, vault, STREAM, clock=CLOCK)
    await fill(client, 30, start=30)
    await archive(client, vault)
    before = shown(await read_all(client))
    await client.jetstream().delete_stream(STREAM)
    prepared = await prepare(vault, STREAM, Until())

    class Dies(NoProgress):
        def begin(self, text: str, total: int, unit: str) -> None:
            if text == "replay segments":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await restore(client, vault, prepared, clock=CLOCK, progress=Dies())
    left = await stream_info(client, STREAM)
    assert left is not None
    assert left.messages == 30
    await restore(client, vault, prepared, clock=CLOCK)
    found = await read_all(client)
    assert [(m.sequence, m.subject, m.body) for m in found] == [(n, s, b) for n, s, _, b in before]
    with pytest.raises(RefusedError, match="there is a stream AGENTESE with 60 messages"):
        await restore(client, vault, prepared, clock=CLOCK)


async def test_a_damaged_snapshot_is_named_refused_and_avoided_when_told(
    client: VerbatimClient, vault: Vault
) -> None:
    """Rule: damage is found before anything is destroyed; told to fall back, the one before is taken."""
    await make_stream(client)
    await fill(client, 100)
    first, _ = await take_snapshot(client, vault, STREAM, clock=CLOCK)
    await archive(client, vault)
    await asyncio.sleep(1.1)
    await fill(client, 100, start=100)
    second, manifest = await take_snapshot(client, vault, STREAM, clock=CLOCK)
    await archive(client, vault)
    key = second.prefix + manifest.parts[0].file
    data = bytearray(await vault.store.get(key))
    data[len(data) // 2] ^= 1
    await vault.store.put(key, bytes(data))
    before = await read_all(client)

    with pytest.raises(CorruptError, match=key):
        await prepare(vault, STREAM, Until())
    assert len(await read_all(client)) == 200
    prepared = await prepare(vault, STREAM, Until(), fall_back=True)
    assert prepared.plan.snapshot == first
    assert key in prepared.avoided[0]
    await restore(client, vault, prepared, clock=CLOCK, replace=True)
    assert [m.body for m in await read_all(client)] == [m.body for m in before]


async def test_a_lost_segment_is_noticed(client: VerbatimClient, vault: Vault) -> None:
    """Rule: a hole in the tail is not skipped in silence."""
    await make_stream(client)
    for start in (0, 10, 20):
        await fill(client, 10, start=start)
        await archive(client, vault)
    segments = (await vault.catalogue(STREAM)).newest.segments  # type: ignore[union-attr]
    await vault.store.delete(segments[1].key)
    with pytest.raises(CorruptError, match="no segment accounts for sequence 11"):
        await prepare(vault, STREAM, Until())
    prepared = await prepare(vault, STREAM, Until(), fall_back=True)
    assert prepared.plan.reaches == 10


async def test_ids_that_repeat_and_expectations_survive_a_replay(
    client: VerbatimClient, vault: Vault
) -> None:
    """Rule: a message whose id came back after the duplicate window, and one that expected an empty subject,
    are stored again as they were."""
    await make_stream(client, duplicate_window=100_000_000)
    stream = client.jetstream()
    for round_ in range(3):
        await stream.publish("agentese.a.b", f"{round_}".encode(), headers={"Nats-Msg-Id": "same"})
        await asyncio.sleep(0.4)
    await stream.publish("agentese.a.c", b"x", headers={"Nats-Expected-Last-Subject-Sequence": "0"})
    await delete(client, 4)
    await stream.publish("agentese.a.c", b"y", headers={"Nats-Expected-Last-Subject-Sequence": "0"})
    await stream.publish("agentese.a.d", b"z", headers={"Nats-Expected-Last-Sequence": "5"})
    await archive(client, vault)
    before = await read_all(client)
    report = await lose_and_restore(client, vault)
    after = await read_all(client)
    assert [m.sequence for m in after] == [1, 2, 3, 5, 6]
    plain = [(m.sequence, m.subject, without_original_time(m.headers), m.body) for m in after]
    assert plain == shown(before)
    assert report.stripped == 0


async def test_a_restored_stream_begins_a_new_line_and_both_can_be_restored(
    each_client: VerbatimClient, vault: Vault
) -> None:
    """Rule: sequences of two histories never mix, although one server version keeps the creation time."""
    await make_stream(each_client)
    await fill(each_client, 100)
    await take_snapshot(each_client, vault, STREAM, clock=CLOCK)
    await fill(each_client, 100, start=100)
    await archive(each_client, vault)
    old = await read_all(each_client)
    await lose_and_restore(each_client, vault, "150")
    await fill(each_client, 100, start=5000)
    await archive(each_client, vault)
    new = await read_all(each_client)

    lines = list((await vault.catalogue(STREAM)).lines)
    assert len(lines) == 2
    await each_client.jetstream().delete_stream(STREAM)
    first = await prepare(vault, STREAM, Until(), line=lines[0])
    await restore(each_client, vault, first, clock=CLOCK)
    assert [m.body for m in await read_all(each_client)] == [m.body for m in old]
    await lose_and_restore(each_client, vault)
    assert [m.body for m in await read_all(each_client)] == [m.body for m in new]


@pytest.mark.parametrize("name", ["", "a.b", "a b", "*", ">", "a/b", "a\\b", "a\n"])
def test_a_name_that_no_stream_may_have_is_refused_at_once(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rule: told as that, not as a server that does not take it."""
    with pytest.raises(SystemExit):
        _parser().parse_args(["restore", "--into", name])
    assert "a stream's name holds no blank" in capsys.readouterr().err
