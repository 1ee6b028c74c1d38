"""The archive: no hole, no repeat, through restarts, kills and streams made anew; seconds behind at most."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.msg import Msg
from tests.backup.streams import STREAM, delete, fill, make_stream, read_all

from kgents_backup.model import lines, segment
from kgents_backup.model.catalogue import Catalogue, LineFiles
from kgents_backup.model.faults import CorruptError, StoreError
from kgents_backup.model.keys import Line, SegmentName
from kgents_backup.model.plan import Until, plan
from kgents_backup.model.segment import Message
from kgents_backup.operations.archiving import ArchivePolicy, Archiver
from kgents_backup.operations.pruning import merge
from kgents_backup.operations.restoring import tail
from kgents_backup.sinks.store import Vault
from kgents_backup.sources.messages import MessageReader
from kgents_backup.sources.stream import stream_info
from kgents_backup.sources.verbatim import VerbatimClient, connected
from kgents_common.cancelling import cancelled
from kgents_common.clock import SystemClock
from kgents_common.pull import Delivered, Forward
from kgents_devstack.servers import NatsServer
from kgents_devstack.waiting import reached as until

CLOCK = SystemClock()
QUICK = ArchivePolicy(every=timedelta(seconds=0.3), segment_bytes=64 * 1024, retry=timedelta(seconds=0.1))


def archiver_of(client: VerbatimClient, vault: Vault, policy: ArchivePolicy = QUICK) -> Archiver:
    async def give() -> VerbatimClient:
        return client

    return Archiver(give, vault, STREAM, clock=CLOCK, policy=policy)


async def archived(vault: Vault) -> tuple[list[Message], list[SegmentName]]:
    """Everything the newest line's segments hold, and their names; checked to follow each other."""
    files = (await vault.catalogue(STREAM)).newest
    assert files is not None
    for before, after in pairwise(files.segments):
        assert after.first == before.last + 1
    messages: list[Message] = []
    for name in files.segments:
        header, found = await vault.read_segment(name)
        stored = {m.sequence for m in found}
        gaps = {s for first, last in header.gaps for s in range(first, last + 1)}
        assert stored | gaps == set(range(name.first, name.last + 1))
        assert not stored & gaps
        messages += found
    return messages, files.segments


@contextlib.asynccontextmanager
async def running(archiver: Archiver):  # type: ignore[no-untyped-def]
    task = asyncio.create_task(archiver.run())
    try:
        yield task
    finally:
        await cancelled(task)
        await archiver.close()


async def test_every_message_is_archived_once_and_gaps_are_recorded(
    each_client: VerbatimClient, vault: Vault
) -> None:
    """Rule: segments account for every sequence: what the stream held, and what it did not."""
    await make_stream(each_client)
    await fill(each_client, 300)
    await delete(each_client, 1, 2, 100, 101, 200)
    archiver = archiver_of(each_client, vault)
    async with running(archiver):
        await until(lambda: _position(archiver, 300))
        await fill(each_client, 700, start=300)
        await until(lambda: _position(archiver, 1000))
    messages, segments = await archived(vault)
    assert messages == await read_all(each_client)
    assert len(segments) > 1


async def as_restored(vault: Vault) -> list[Message]:
    """What a restore of the newest line reads, checked to account for every sequence."""
    files = (await vault.catalogue(STREAM)).newest
    assert files is not None
    found = plan(files, STREAM, Until())
    assert found.hole is None
    return [message async for _, messages in tail(vault, found, 0) for message in messages]


async def test_restarts_leave_neither_hole_nor_repeat(client: VerbatimClient, vault: Vault) -> None:
    """Rule: where to go on is in the store; whatever was read and not stored is read again.

    A write that was under way when its archiver was cut off may land later and overlap what the next one
    stored: what is restored has each message once all the same.
    """
    await make_stream(client)
    writing = asyncio.create_task(fill(client, 4000))
    for _ in range(6):
        archiver = archiver_of(client, vault)
        task = asyncio.create_task(archiver.run())
        await asyncio.sleep(0.4)
        await cancelled(task)  # without a flush: what it holds is lost with it
    await writing
    last = archiver_of(client, vault)
    assert await last.catch_up() == 4000
    await last.close()
    assert await as_restored(vault) == await read_all(client)


async def test_a_late_write_of_a_dead_archiver_repeats_nothing(client: VerbatimClient, vault: Vault) -> None:
    """Rule: segments that overlap, wholly or in part, are restored as if they did not."""
    await make_stream(client)
    await fill(client, 300)
    held = await read_all(client)
    info = await stream_info(client, STREAM)
    assert info is not None
    line = Line.of(info.created)
    for first, last in ((1, 120), (1, 200), (150, 260), (261, 300)):
        name, data = segment.encode(
            STREAM, line, first, held[first - 1 : last], stream_first=1, written_at="", consumers=()
        )
        await vault.write_segment(name, data)
    assert await as_restored(vault) == held


async def test_a_stream_made_anew_begins_a_new_line(client: VerbatimClient, vault: Vault) -> None:
    """Rule: a recreated stream counts from 1 again; its messages are not mistaken for the old ones."""
    await make_stream(client)
    await fill(client, 50)
    archiver = archiver_of(client, vault)
    async with running(archiver):
        await until(lambda: _position(archiver, 50))
        await client.jetstream().delete_stream(STREAM)
        await make_stream(client)
        await fill(client, 20, start=500)
        await until(lambda: _lines(vault, 2))
        await until(lambda: _position(archiver, 20))
    messages, _ = await archived(vault)
    assert messages == await read_all(client)
    assert len(messages) == 20


async def test_a_server_that_dies_delays_the_archive_and_loses_nothing(
    own_nats: NatsServer, vault: Vault
) -> None:
    """Rule: kill -9 of the server; the archive goes on by itself when it is back."""
    async with connected({"servers": own_nats.url, "max_reconnect_attempts": -1}) as client:
        await make_stream(client)
        await fill(client, 200)
        archiver = archiver_of(client, vault)
        async with running(archiver):
            await until(lambda: _position(archiver, 200))
            await asyncio.to_thread(own_nats.kill)
            await asyncio.sleep(1)
            await asyncio.to_thread(own_nats.start)
            await until(lambda: _connected(client))
            await fill(client, 200, start=200)
            await until(lambda: _position(archiver, 400))
        messages, _ = await archived(vault)
        assert messages == await read_all(client)


async def test_a_store_that_fails_delays_the_archive_and_loses_nothing(
    client: VerbatimClient, vault: Vault
) -> None:
    """Rule: a full or absent store is tried again; nothing is skipped."""

    class Failing:
        """A store that refuses its first segments."""

        def __init__(self) -> None:
            self.name = "failing"
            self.left = 3

        def __getattr__(self, name: str) -> object:
            return getattr(vault.store, name)

        async def put(self, key: str, data: bytes) -> None:
            if key.endswith(".seg") and self.left:
                self.left -= 1
                raise StoreError("no space left on device")
            await vault.store.put(key, data)

    await make_stream(client)
    await fill(client, 500)
    archiver = archiver_of(client, Vault(Failing(), vault.sealer))  # type: ignore[arg-type]
    async with running(archiver):
        await until(lambda: _position(archiver, 500))
    messages, _ = await archived(vault)
    assert messages == await read_all(client)


async def test_merged_segments_say_the_same(client: VerbatimClient, vault: Vault) -> None:
    """Rule: merging changes how many files there are, not what they say."""
    await make_stream(client)
    for start in range(0, 100, 10):
        await fill(client, 10, start=start)
        archiver = archiver_of(client, vault)
        await archiver.catch_up()
        await archiver.close()
    before, names = await archived(vault)
    later = datetime.now(UTC) + timedelta(hours=1)
    assert len(names) == 10
    assert await merge(vault, STREAM, now=later, written_at=later.isoformat()) == 10
    after, merged = await archived(vault)
    assert after == before
    assert [(s.first, s.last) for s in merged] == [(1, 100)]
    archiver = archiver_of(client, vault)
    await fill(client, 5, start=100)
    assert await archiver.catch_up() == 105
    await archiver.close()


async def test_header_blocks_survive_reading_as_bytes(client: VerbatimClient) -> None:
    """Rule: a name given twice, odd spacing and text beyond ASCII are kept (nats-py's dict loses them)."""
    await make_stream(client)
    block = b"NATS/1.0\r\nA: one\r\nA:two\r\nb:   spaced \r\nU: \xc3\xbc\r\n\r\n"
    await client.publish_verbatim("agentese.a.b", "", block, b"body")
    await until(lambda: read_all(client))
    (message,) = await read_all(client)
    assert message.headers == block
    assert message.body == b"body"


async def test_a_batch_of_large_messages_has_a_bound_in_bytes(client: VerbatimClient) -> None:
    """Rule: however large messages are, a reader holds so many bytes at a time, and reads all of them."""
    await make_stream(client)
    await fill(client, 12, size=100_000)
    reader = MessageReader(client, STREAM)
    found: list[Message] = []
    while batch := await reader.batch(limit_bytes=350_000, wait_seconds=None):
        assert sum(len(message.body) for message in batch) <= 350_000
        found += batch
    await reader.close()
    assert [message.sequence for message in found] == list(range(1, 13))


async def test_a_reader_that_lost_its_consumer_goes_on_where_it_was(client: VerbatimClient) -> None:
    """Rule: a deleted consumer costs a retry, no message."""
    await make_stream(client)
    await fill(client, 100)
    reader = MessageReader(client, STREAM)
    first = await reader.batch(limit=40)
    for name in await client.jetstream().consumers_info(STREAM):
        await client.jetstream().delete_consumer(STREAM, name.name)
    rest = [m async for m in reader.read(100)]
    await reader.close()
    assert [m.sequence for m in first + rest] == list(range(1, 101))


MESSAGES = st.lists(
    st.tuples(
        st.integers(1, 5),
        st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=20),
        st.binary(max_size=50),
        st.binary(max_size=200),
    ),
    min_size=1,
    max_size=30,
)


@given(MESSAGES, st.integers(1, 10**12))
def test_a_segment_gives_back_what_went_in(rows: list[tuple[int, str, bytes, bytes]], start: int) -> None:
    """Rule: encode, decode: the same messages, and every sequence accounted for."""
    messages: list[Message] = []
    sequence = start - 1
    for step, subject, headers, body in rows:
        sequence += step
        messages.append(Message(sequence, 1_700_000_000_000_000_000 + sequence, subject, headers, body))
    line = Line.of("2026-01-02T03:04:05.678901234Z")
    name, data = segment.encode(STREAM, line, start, messages, stream_first=1, written_at="now")
    assert SegmentName.parse(name.key, len(data)) == name
    header, found = segment.decode(name, data)
    assert found == messages
    assert header.count + sum(b - a + 1 for a, b in header.gaps) == name.last - name.first + 1


@given(st.data())
def test_no_bit_of_a_segment_can_change(data: st.DataObject) -> None:
    """Rule: whatever bit flips, wherever it is cut, reading names the file and refuses."""
    messages = [Message(n, n, "s", b"", b"body") for n in range(1, 5)]
    name, good = segment.encode(
        STREAM, Line("20260102T030405678901Z"), 1, messages, stream_first=1, written_at=""
    )
    bad = bytearray(good)
    position = data.draw(st.integers(0, len(good) - 1))
    bad[position] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(CorruptError) as error:
        segment.decode(name, bytes(bad))
    assert error.value.key == name.key
    with pytest.raises(CorruptError):
        segment.decode(name, good[:position])


RANGES = st.lists(st.tuples(st.integers(1, 30), st.integers(0, 15)), max_size=12)


@given(RANGES, st.integers(1, 35))
def test_a_chain_of_segments_has_no_hole(ranges: list[tuple[int, int]], start: int) -> None:
    """Rule: however segments overlap, the chain covers every sequence that all of them cover from `start`."""
    line = Line("20260102T030405678901Z")
    files = LineFiles(line)
    files.segments = [SegmentName(STREAM, line, a, a + n, 0, 0) for a, n in ranges]
    covered = {s for a, n in ranges for s in range(a, a + n + 1)}
    reach = start
    while reach in covered:
        reach += 1
    chain = files.covering(start)
    assert (chain[-1].last + 1 if chain else start) == reach
    position = start
    for name in chain:
        assert name.first <= position <= name.last
        position = name.last + 1


def test_the_line_of_a_stream_is_told_by_its_head() -> None:
    """Rule: the same creation time is not enough; the message at the known end must be the same."""
    created = "2026-01-02T03:04:05.678901234Z"
    line = Line.of(created)
    catalogue = Catalogue(STREAM, {line: LineFiles(line)})
    catalogue.of(line).segments = [SegmentName(STREAM, line, 1, 100, 1000, 2000)]

    def of(**changes: object) -> Line:
        values: dict[str, object] = {
            "created": created,
            "first_sequence": 1,
            "last_sequence": 120,
            "last_time_ms": 3000,
            "time_ms_at_head": 2000,
        }
        return lines.current(catalogue, **(values | changes))  # type: ignore[arg-type]

    assert of() == line
    assert of(created="2026-01-03T00:00:00Z") == Line.of("2026-01-03T00:00:00Z")
    assert of(time_ms_at_head=2500) == Line(line.created, 1)
    assert of(last_sequence=90, time_ms_at_head=None, last_time_ms=1500) == Line(line.created, 1)
    assert of(time_ms_at_head=None) == line
    assert of(first_sequence=110, time_ms_at_head=None) == line


async def _position(archiver: Archiver, wanted: int) -> bool:
    return archiver.state.position >= wanted


async def _lines(vault: Vault, wanted: int) -> bool:
    return len((await vault.catalogue(STREAM)).lines) == wanted


async def _connected(client: VerbatimClient) -> bool:
    return client.is_connected


class Lagging:
    """The first consumer gives fifty messages and then says that there are no more."""

    def __init__(self) -> None:
        self.is_new, self.first = True, 0

    async def batch(self, whole: Any, consumer: Forward, asked: dict[str, Any]) -> Any:
        if self.is_new:
            self.is_new, self.first = False, id(consumer)
            found = await whole(consumer, **{**asked, "limit": 50})
        elif id(consumer) == self.first:
            found = []
        else:
            return await whole(consumer, **asked)
        consumer.pending = 0
        return [(message, dataclasses.replace(place, pending=0)) for message, place in found]


async def test_a_follower_that_lacks_the_rest_is_not_the_streams_end(
    client: VerbatimClient, vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: "nothing pending" is a word of the server that a consumer stands on; the leader knows the end."""
    await make_stream(client)
    await fill(client, 200)
    await delete(client, 200)
    whole, lagging = Forward.batch, Lagging()

    async def batch(self: Forward, **asked: Any) -> list[tuple[Msg, Delivered]]:
        return await lagging.batch(whole, self, asked)

    monkeypatch.setattr(Forward, "batch", batch)
    assert [m.sequence for m in await read_all(client)] == list(range(1, 200))
    lagging.is_new = True
    archiver = archiver_of(client, vault)
    assert await archiver.catch_up() == 199
    await archiver.close()
