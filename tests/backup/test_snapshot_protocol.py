"""Snapshots and restores on the wire, on the oldest server we support and the current one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from tests.backup.streams import STREAM, add_consumer, consume, delete, fill, make_stream, read_all

from kgents_backup.model.faults import ProtocolError
from kgents_backup.model.ports import NoProgress
from kgents_backup.sinks.restore import LARGEST_PIECE, SMALLEST_PIECE, restore_snapshot
from kgents_backup.sources.snapshot import FrameWalk, snapshot
from kgents_backup.sources.stream import durable_consumers
from kgents_backup.sources.verbatim import VerbatimClient
from kgents_common.streams import JetStreamApiError, request


async def chunks_of(chunks: list[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


@pytest.mark.parametrize("count", [0, 3, 4000])
async def test_what_was_copied_comes_back_the_same(each_client: VerbatimClient, count: int) -> None:
    """Rule: sequences, gaps, subjects, header bytes, times, bodies and consumers survive, to the byte."""
    await make_stream(each_client)
    await add_consumer(each_client)
    await fill(each_client, count, size=1000)
    if count > 100:
        await delete(each_client, 1, 2, 50, count)
        await consume(each_client, 100, acknowledge=90)
    before = await read_all(each_client)
    consumers = await durable_consumers(each_client, STREAM)

    async with snapshot(each_client, STREAM) as source:
        copy = [chunk async for chunk in source.chunks()]
    await each_client.jetstream().delete_stream(STREAM)
    info = await restore_snapshot(
        each_client,
        config=source.config,
        state=source.state,
        content=chunks_of(copy),
        progress=NoProgress(),
    )

    assert await read_all(each_client) == before
    assert len(before) == (count - 4 if count > 100 else count)
    assert info["state"]["last_seq"] == count
    assert [(c.name, c.ack_floor) for c in await durable_consumers(each_client, STREAM)] == [
        (c.name, c.ack_floor) for c in consumers
    ]


async def test_a_stream_that_is_written_to_is_copied_as_of_one_moment(each_client: VerbatimClient) -> None:
    """Rule: the answer's state is what comes back, whoever publishes meanwhile; 2.10 may copy a few more."""
    await make_stream(each_client)
    await fill(each_client, 3000, size=1000)
    writing = asyncio.create_task(fill(each_client, 3000, start=3000))
    async with snapshot(each_client, STREAM) as source:
        copy = [chunk async for chunk in source.chunks()]
    await writing
    before = await read_all(each_client)
    await each_client.jetstream().delete_stream(STREAM)
    await restore_snapshot(
        each_client,
        config=source.config,
        state=source.state,
        content=chunks_of(copy),
        progress=NoProgress(),
    )
    after = await read_all(each_client)
    assert after == before[: len(after)]
    assert len(after) >= source.state["last_seq"]


async def test_a_stream_that_does_not_exist_is_refused(each_client: VerbatimClient) -> None:
    """Rule: the server's own error reaches the caller."""
    with pytest.raises(JetStreamApiError, match="stream not found"):
        async with snapshot(each_client, "NOSUCH"):
            pass


async def test_a_reader_that_takes_nothing_gets_the_servers_error(each_client: VerbatimClient) -> None:
    """Rule: a copy that stopped is an error, never a short copy."""
    await make_stream(each_client)
    await fill(each_client, 400, size=50_000)
    async with snapshot(each_client, STREAM, chunk_bytes=64 * 1024) as source:
        chunks = source.chunks()
        await anext(chunks)
        await asyncio.sleep(8)  # longer than the server's patience of 5 s
        with pytest.raises(ProtocolError, match="408 No Flow Response"):
            assert [chunk async for chunk in chunks]


async def test_a_live_stream_is_not_overwritten(each_client: VerbatimClient) -> None:
    """Rule: the server refuses to restore over a stream, and so do we."""
    await make_stream(each_client)
    async with snapshot(each_client, STREAM) as source:
        copy = [chunk async for chunk in source.chunks()]
    with pytest.raises(JetStreamApiError, match="already in use"):
        await restore_snapshot(
            each_client,
            config=source.config,
            state=source.state,
            content=chunks_of(copy),
            progress=NoProgress(),
        )


@pytest.mark.parametrize("largest", [LARGEST_PIECE, SMALLEST_PIECE], ids=["quick", "slow"])
async def test_a_damaged_copy_is_refused_and_leaves_nothing(
    each_client: VerbatimClient, monkeypatch: pytest.MonkeyPatch, largest: int
) -> None:
    """Rule: what cannot be read back ends in an error and leaves no stream. The server sees it; where that is
    slow and given smaller pieces, we do."""
    monkeypatch.setattr("kgents_backup.sinks.restore.LARGEST_PIECE", largest)
    await make_stream(each_client)
    await fill(each_client, 3000, size=1000)
    async with snapshot(each_client, STREAM) as source:
        copy = [chunk async for chunk in source.chunks()]
    await each_client.jetstream().delete_stream(STREAM)
    damaged = bytearray(b"".join(copy))
    damaged[len(damaged) // 2] ^= 0xFF
    with pytest.raises(ProtocolError, match=r"refused the restore|does not open"):
        await restore_snapshot(
            each_client,
            config=source.config,
            state=source.state,
            content=chunks_of([bytes(damaged)]),
            progress=NoProgress(),
        )
    with pytest.raises(JetStreamApiError, match="not found"):
        await request(each_client, f"STREAM.INFO.{STREAM}")


async def test_a_copy_cut_in_a_frame_is_not_taken_for_whole() -> None:
    """Rule: the frames of the stream tell a cut from an end."""
    walk = FrameWalk()
    walk.feed(b"\xff\x06\x00\x00S2sT")
    assert not walk.is_whole
    walk.feed(b"wO")
    assert walk.is_whole
    walk.feed(b"\x00\x01")
    assert not walk.is_whole


async def test_the_pause_before_an_acknowledgement_holds_the_server_back(each_client: VerbatimClient) -> None:
    """Rule: unacknowledged chunks are at most a window (8 MiB), so memory is bounded."""
    await make_stream(each_client)
    await fill(each_client, 400, size=50_000)
    inbox = each_client.new_inbox()
    subscription = await each_client.subscribe(inbox, pending_msgs_limit=-1, pending_bytes_limit=-1)
    await each_client.request(
        f"$JS.API.STREAM.SNAPSHOT.{STREAM}",
        json.dumps({"deliver_subject": inbox, "chunk_size": 65536}).encode(),
        timeout=10,
    )
    await asyncio.sleep(1)
    assert subscription.pending_bytes <= 9 * 1024 * 1024
    await subscription.unsubscribe()
