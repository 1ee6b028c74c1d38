"""What clients may hold and send, together and by address: on sockets where bytes matter, else as values."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from kgents_common.http_server import MAX_FRAMING_BYTES, MAX_HEADERS, Limits
from kgents_common.http_server.bounds import Bounds

from .test_http_server import REQUEST, answer, problem_status, running, whole

CHUNKED = b"POST /one HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
FAR_TOO_MUCH = 64 * 1024 * 1024


async def pour(writer: asyncio.StreamWriter, piece: bytes) -> int:
    """Send as fast as the other side reads until it closes; how many bytes that took."""
    sent = 0
    with contextlib.suppress(OSError):
        while sent < FAR_TOO_MUCH and not writer.is_closing():
            writer.write(piece)
            sent += len(piece)
            await writer.drain()
            await asyncio.sleep(0)
    return sent


@pytest.mark.parametrize(
    ("begun", "piece"),
    [
        (CHUNKED + b"3\r\nabc\r\n0\r\n", b"a: b\r\n" * 10_000),
        (CHUNKED + b"3\r\nabc\r\n0\r\n", b"a" * 60_000),
        (CHUNKED + b"3;", b"x" * 60_000),
        (CHUNKED + b"3\r\nabc\r\n", b"1;" + b"x" * 60_000 + b"\r\na\r\n"),
        (CHUNKED, b"1\r\na\r\n" * 10_000),
        (b"", b"\r\n" * 30_000),
        (REQUEST.replace(b"\r\n\r\n", b"\r\ncontent-length: 99999999999\r\n\r\n"), b"b" * 60_000),
    ],
    ids=["trailers", "one-trailer", "extension", "extensions", "tiny-chunks", "line-feeds", "after-answer"],
)
async def test_what_never_ends_is_ended(begun: bytes, piece: bytes) -> None:
    """Rule: what comes beside a body that somebody wants has a bound; others are answered meanwhile."""
    async with running(answers=True) as found:
        if b"content-length" in begun:
            found.app.answers_first = True
        _, writer = await found.connect()
        writer.write(begun)
        pouring = asyncio.create_task(pour(writer, piece))
        other_reader, other_writer = await found.connect()
        while not pouring.done():
            other_writer.write(REQUEST)
            assert (await answer(other_reader)).endswith(b"/one")
        assert await pouring < FAR_TOO_MUCH
        writer.close()
        other_writer.close()


async def test_trailers_and_extensions_of_a_modest_size_are_taken() -> None:
    """Rule: what RFC 9112 section 7.1 allows is read and nobody's header."""
    async with running() as found:
        reader, writer = await found.connect()
        for _ in range(2):  # and the connection is as good as before
            writer.write(CHUNKED + b"3;ext=" + b"x" * (MAX_FRAMING_BYTES // 2) + b"\r\nabc\r\n")
            await asyncio.sleep(0.05)
            writer.write(b"0\r\ntrailer: " + b"y" * (MAX_FRAMING_BYTES // 4) + b"\r\n\r\n")
            assert (await answer(reader)).endswith(b"/oneabc")
        writer.close()


async def test_a_body_in_small_chunks_comes_whole() -> None:
    """Rule: a body that goes on may be cut as its client likes, down to a few bytes."""
    async with running() as found:
        reader, writer = await found.connect()
        body = b"abcd" * 50_000
        writer.write(CHUNKED + b"4\r\nabcd\r\n" * 50_000 + b"0\r\n\r\n")
        assert (await answer(reader)).endswith(body)
        writer.close()


async def test_a_long_pipeline_is_answered_in_order() -> None:
    """Rule: what was read while an answer was under way is parsed once it is wanted."""
    async with running() as found:
        reader, writer = await found.connect()
        paths = [b"/%d" % n for n in range(3000)]
        padded = b"GET %s HTTP/1.1\r\nhost: a\r\nx-pad: " + b"p" * 500 + b"\r\n\r\n"
        writer.write(b"".join(padded % path for path in paths))
        for path in paths:
            assert (await answer(reader)).endswith(b"\r\n\r\n" + path)
        writer.close()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /one HTTP/1.1\r\n" + b"a:\r\n" * (MAX_HEADERS + 1) + b"\r\n", 431),
        (REQUEST * 500, 400),
    ],
    ids=["headers", "pipeline"],
)
async def test_small_things_have_a_number(sent: bytes, status: int) -> None:
    """Rule: few bytes that make many objects are counted as objects."""
    async with running(answers=False) as found:
        reader, writer = await found.connect()
        writer.write(sent)
        assert problem_status(await whole(reader)) == status


async def test_beyond_the_connections_the_longest_idle_one_makes_room() -> None:
    """Rule: who holds connections does not shut out who comes with a request."""
    async with running(limits=Limits(connections=5)) as found:
        idle = [await found.connect() for _ in range(4)]
        busy_reader, busy_writer = await found.connect()
        busy_writer.write(REQUEST)
        await answer(busy_reader)
        late_reader, late_writer = await found.connect()
        late_writer.write(REQUEST)
        assert (await answer(late_reader)).endswith(b"/one")
        assert await whole(idle[0][0]) == b""
        busy_writer.write(REQUEST)
        assert (await answer(busy_reader)).endswith(b"/one")
        assert found.server.bounds.ended == {"connections": 1}
        for _, writer in (*idle, (busy_reader, busy_writer), (late_reader, late_writer)):
            writer.close()


async def test_unfinished_heads_have_a_bound_together() -> None:
    """Rule: the oldest unfinished head makes room, and is told so."""
    async with running(limits=Limits(head_bytes=100_000)) as found:
        clients = [await found.connect() for _ in range(4)]
        for _, writer in clients:
            writer.write(b"GET /one HTTP/1.1\r\nx: ")
            await asyncio.sleep(0.02)
            writer.write(b"y" * 40_000)
        for reader, _ in clients[:2]:
            text = await whole(reader)
            assert problem_status(text) == 503
            assert b"retry-after" in text
        for reader, writer in clients[2:]:
            writer.write(b"\r\n\r\n")
            assert (await answer(reader)).endswith(b"/one")
            writer.close()
        assert found.server.bounds.head_bytes == 0


class Held:
    """A connection of somebody's."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.reason = ""

    def end(self, reason: str) -> None:
        self.reason = reason


def test_one_address_has_its_share_and_a_trusted_proxy_all() -> None:
    """Rule: per address as well as in total; a proxy's address is nobody's own."""
    bounds = Bounds(Limits(connections_an_address=2, head_bytes_an_address=100), trusted={"10.0.0.1"})
    strangers, proxied = [Held("192.0.2.1") for _ in range(3)], [Held("10.0.0.1") for _ in range(9)]
    for one in (*strangers, *proxied):
        bounds.opened(one)
    assert [one.reason for one in strangers] == ["", "", "address"]
    for one in (*proxied, *strangers[:2]):
        bounds.holds(one, 60)
    assert [one.reason for one in strangers] == ["heads", "", "address"]
    assert not any(one.reason for one in proxied)
    bounds.has_whole_head(strangers[1])
    for one in (*strangers, *proxied):
        bounds.closed(one)
    assert (bounds.connections, bounds.head_bytes) == (0, 0)
    assert not bounds._open
    assert not bounds._head_bytes_by
    assert not bounds._waiting
