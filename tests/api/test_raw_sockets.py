"""Raw bytes on the door's port: whatever comes, it answers 4xx or closes, and works on unharmed."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from kgents_devstack.servers import NatsServer
from kgents_devstack.waiting import HANGS_AFTER_SECONDS

from .conftest import Door, encoded
from .test_rolling_restart import doors

SECONDS = HANGS_AFTER_SECONDS
ROUNDS = 300


@pytest.fixture
async def unharmed(door: Door) -> AsyncIterator[Door]:
    """The door; afterwards it still takes events, and its log tells of no failure of its own."""
    written = door.service.log_path.stat().st_size
    pid = door.service.pid
    yield door
    assert door.post(encoded(uuid.uuid4().hex)).status_code == 202
    assert door.service.is_running
    assert door.service.pid == pid
    log = door.service.log_path.read_text()[written:]
    assert "Traceback" not in log
    assert "Exception" not in log
    assert "request.failed" not in log


async def conversation(door: Door, *parts: bytes, pause_seconds: float = 0, end: bool = True) -> bytes:
    """Everything the door says to these bytes, sent one after the other."""
    reader, writer = await asyncio.open_connection("127.0.0.1", door.service.port)
    said = b""
    try:
        for part in parts:
            writer.write(part)
            await asyncio.sleep(pause_seconds)
        if end:
            writer.write_eof()
        async with asyncio.timeout(SECONDS):
            while chunk := await reader.read(65536):
                said += chunk
    except ConnectionError:
        pass  # it closed while bytes were on their way
    finally:
        writer.close()
    return said


def statuses(said: bytes) -> list[int]:
    """The statuses of all answers, each of which is whole."""
    found = []
    while said:
        head, _, rest = said.partition(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        assert lines[0].startswith(b"http/1.1 "), said[:200]
        status = int(lines[0].split()[1])
        headers = dict(line.split(b": ", 1) for line in lines[1:])
        length = int(headers.get(b"content-length", b"0"))
        assert len(rest) >= length
        if status >= 400:
            assert headers[b"content-type"] == b"application/problem+json"
            assert json.loads(rest[:length])["status"] == status
        found.append(status)
        said = rest[length:]
    return found


def request(
    door: Door, *, head: str = "", body: bytes = b"", line: str = "POST /v1/events HTTP/1.1"
) -> bytes:
    common = f"{line}\r\nhost: api\r\nauthorization: Bearer {door.key}\r\nconnection: close\r\n"
    return f"{common}content-type: application/cloudevents+json\r\n{head}\r\n".encode() + body


HEADS: list[tuple[str, bytes, set[int]]] = [
    ("nothing", b"", set()),
    ("line feeds", b"\r\n" * 100, set()),
    ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100), {400}),
    ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400}),
    ("HTTP/0.9", b"GET /health/live\r\n\r\n", {200, 400}),
    ("HTTP/9", b"GET /health/live HTTP/9.9\r\n\r\n", {400}),
    ("no method", b" /health/live HTTP/1.1\r\n\r\n", {400}),
    ("unknown method", b"BREW /health/live HTTP/1.1\r\n\r\n", {400}),
    ("asterisk", b"OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n", {400, 404, 405}),
    ("CONNECT", b"CONNECT example.invalid:443 HTTP/1.1\r\nhost: a\r\n\r\n", {400, 404, 405}),
    ("absolute form", b"GET http://api/health/live HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", {200}),
    ("bytes in the path", b"GET /\xff\xfe HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", {400, 404}),
    ("broken escapes", b"GET /%ff%00%zz%C0%AF HTTP/1.1\r\nconnection: close\r\n\r\n", {404}),
    ("line feed escaped", b"GET /%0d%0aa:b HTTP/1.1\r\nconnection: close\r\n\r\n", {404}),
    ("long path", b"GET /" + b"a" * 60_000 + b" HTTP/1.1\r\nconnection: close\r\n\r\n", {404, 431}),
    ("space in a header's name", b"GET / HTTP/1.1\r\na b: c\r\n\r\n", {400}),
    ("bytes in a header", b"GET /health HTTP/1.1\r\nx: \xff\xfe\r\nconnection: close\r\n\r\n", {200}),
    ("NUL in a header", b"GET / HTTP/1.1\r\nx: \x00\r\n\r\n", {400}),
    ("folded header", b"GET / HTTP/1.1\r\nx: a\r\n b\r\nconnection: close\r\n\r\n", {400, 404}),
    ("two lengths", b"POST / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab", {400}),
    ("length, chunks", b"POST / HTTP/1.1\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0", {400}),
    ("negative length", b"POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n", {400}),
    ("endless length", b"POST / HTTP/1.1\r\ncontent-length: " + b"9" * 40 + b"\r\n\r\n", {400}),
    ("unknown coding", b"POST / HTTP/1.1\r\ntransfer-encoding: gzip\r\n\r\n", {400, 404}),
    ("websocket", b"GET /v1/events HTTP/1.1\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n", {405}),
    ("h2c", b"GET /health/live HTTP/1.1\r\nconnection: upgrade, close\r\nupgrade: h2c\r\n\r\n", {200}),
]  # fmt: skip


@pytest.mark.parametrize(("sent", "expected"), [h[1:] for h in HEADS], ids=[h[0] for h in HEADS])
async def test_a_strange_head_is_refused(unharmed: Door, sent: bytes, expected: set[int]) -> None:
    """Rule: a 4xx with a problem document, or a close."""
    said = statuses(await conversation(unharmed, sent))
    assert set(said) <= expected
    assert bool(said) == bool(expected)


async def test_a_body_may_come_in_small_pieces(unharmed: Door) -> None:
    # A client that ends its side is gone to the door: none does so here before it has its answer.
    body = encoded(uuid.uuid4().hex)
    pieces = [body[n : n + 7] for n in range(0, len(body), 7)]
    whole = request(unharmed, head=f"content-length: {len(body)}\r\n")
    assert statuses(await conversation(unharmed, whole, *pieces, pause_seconds=0.01, end=False)) == [202]
    chunks = [f"{len(piece):x}\r\n".encode() + piece + b"\r\n" for piece in pieces]
    whole = request(unharmed, head="transfer-encoding: chunked\r\n")
    end = b"0\r\nx-trailer: a\r\n\r\n"
    assert statuses(await conversation(unharmed, whole, *chunks, end, pause_seconds=0.01, end=False)) == [202]


async def test_a_body_cut_off_stores_nothing(unharmed: Door) -> None:
    """Rule: a request that does not come whole is no request, however much of it came."""
    before = unharmed.stored()
    body = encoded(uuid.uuid4().hex)
    for cut in (0, 1, len(body) - 1):
        sent = request(unharmed, head=f"content-length: {len(body)}\r\n", body=body[:cut])
        assert statuses(await conversation(unharmed, sent)) in ([], [400])
        chunk = f"{len(body):x}\r\n".encode() + body[:cut]
        sent = request(unharmed, head="transfer-encoding: chunked\r\n", body=chunk)
        assert statuses(await conversation(unharmed, sent)) in ([], [400])
    whole = f"{len(body):x}\r\n".encode() + body + b"\r\n"  # all of the event, and no end
    sent = request(unharmed, head="transfer-encoding: chunked\r\n", body=whole)
    assert statuses(await conversation(unharmed, sent)) in ([], [400])
    garbled = request(unharmed, head="transfer-encoding: chunked\r\n", body=whole + b"xyz\r\n")
    assert statuses(await conversation(unharmed, garbled)) == [400]
    assert unharmed.stored() == before


async def test_a_request_that_asks_to_upgrade_is_answered_as_it_is(unharmed: Door) -> None:
    """Rule: an event's body is read whatever else the request wishes for, or the request is refused."""
    body = encoded(uuid.uuid4().hex)
    sent = request(
        unharmed,
        head=f"connection: upgrade\r\nupgrade: websocket\r\ncontent-length: {len(body)}\r\n",
        body=body,
    )
    assert statuses(await conversation(unharmed, sent))[0] in (202, 400)


async def test_mutated_requests_get_answers_of_4xx(unharmed: Door) -> None:
    """Rule: no bytes at all make a 5xx or hurt the process; the seed is fixed, the run the same each time."""
    dice = random.Random(20261124)
    for round_number in range(ROUNDS):
        body = encoded(uuid.uuid4().hex)
        head = dice.choice([f"content-length: {len(body)}\r\n", "transfer-encoding: chunked\r\n"])
        if "chunked" in head:
            body = f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"
        sent = bytearray(request(unharmed, head=head, body=body))
        for _ in range(dice.randint(1, 6)):
            place = dice.randrange(len(sent))
            change = dice.randrange(4)
            if change == 0:
                sent[place] = dice.randrange(256)
            elif change == 1:
                del sent[place : place + dice.randint(1, 20)]
            elif change == 2:
                sent[place:place] = dice.randbytes(dice.randint(1, 8))
            else:
                sent[place:place] = sent[place : place + dice.randint(1, 40)]
            sent = sent or bytearray(b"\x00")
        said = statuses(await conversation(unharmed, bytes(sent)))
        assert all(status < 500 for status in said), (round_number, bytes(sent), said)


async def test_a_request_cut_off_by_the_drain_is_told_to_come_again(
    tmp_path: Path, own_nats: NatsServer
) -> None:
    """Rule: a body that never ends holds up no stop; its answer is a 503 as any other, and no traceback."""
    with doors(tmp_path, own_nats, 1, KGENTS_DRAIN_SECONDS="3") as ((service,), key, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
        head = f"POST /v1/events HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\n"
        writer.write(f"{head}content-type: application/json\r\ncontent-length: 10\r\n\r\n[".encode())
        await asyncio.sleep(0.2)
        service.signal(signal.SIGTERM)
        async with asyncio.timeout(SECONDS):
            said = await reader.read()
        assert statuses(said) == [503]
        assert b"retry-after: " in said
        assert await asyncio.to_thread(service.wait, SECONDS) == 0
        writer.close()
        log = service.log_path.read_text()
        assert "Traceback" not in log
        assert "drain_cut_short" not in log


async def test_slow_requests_take_no_place_from_others(tmp_path: Path, own_nats: NatsServer) -> None:
    """Rule: whoever does not send on is refused with 408 in time, and until then counts as nobody's load but
    its own."""
    settings = {"KGENTS_REQUEST_SECONDS": "2", "KGENTS_MAX_CONCURRENCY": "20"}
    with doors(tmp_path, own_nats, 1, **settings) as ((service,), key, _):
        head = f"POST /v1/events HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\n"
        slow = [await asyncio.open_connection("127.0.0.1", service.port) for _ in range(20)]
        for _, writer in slow:
            writer.write(f"{head}content-type: application/json\r\ncontent-length: 10\r\n\r\n[".encode())

        def post(event_id: str) -> int:
            headers = {"x-api-key": key, "content-type": "application/cloudevents+json"}
            url = f"{service.url}/v1/events"
            return httpx.post(url, content=encoded(event_id), headers=headers).status_code

        assert await asyncio.to_thread(post, "meanwhile") == 202
        async with asyncio.timeout(SECONDS):
            for reader, _ in slow:
                assert statuses(await reader.read()) == [408]
        assert await asyncio.to_thread(post, "after") == 202
