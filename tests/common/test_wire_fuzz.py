"""Whatever comes over the wire, the client lives; whatever a server takes, every reader gets."""

from __future__ import annotations

import asyncio
import base64
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from nats.errors import BadHeaderError, ProtocolError

from kgents_common import delivery, streams
from kgents_common.broker import Broker
from kgents_common.connection import Client, Connection, Message
from kgents_common.connection.wire import WireParser, header_block, header_line, read_headers, readable
from kgents_common.pull import Forward
from kgents_devstack.raw_nats import UNREADABLE_HEADERS, RawPublisher
from kgents_devstack.servers import NatsServer
from kgents_devstack.servers.nats import OLDEST_VERSION, installed_version

from .conftest import settings_for

Connect = Callable[..., Awaitable[Connection]]

_WORDS = (
    b"MSG", b"HMSG", b"INFO", b"PING", b"PONG", b"+OK", b"-ERR", b" ", b"  ", b"\r\n", b"\r", b"\n",
    b"\t", b"1", b"0", b"12", b"-1", b"+1", b"1_0", b"99999999999", b"a.b", b"\xff", b"\x00", b"\x0b",
    b"{}", b"[]", b"{", b"null", b"'Unknown'", b"'Stale Connection'", b"NATS/1.0", b"NATS/1.0 503",
    b":", b"x: y", b"$JS.ACK.",
)  # fmt: skip
# A byte of a subject may be anything but what parts it; and wildcards and dots are the server's to judge.
_SUBJECT_BYTES = bytes(set(range(256)) - set(b" \t\r\n.*>"))


def wire(random: random.Random) -> bytes:
    """A piece of protocol, nearly right or not at all."""
    kind = random.random()
    if kind < 0.3:
        return random.randbytes(random.randrange(1, 80))
    if kind < 0.6:
        return b"".join(random.choices(_WORDS, k=random.randrange(1, 12))) + b"\r\n"
    headers, body = block(random), random.randbytes(random.randrange(0, 40))
    subject = random.choice((b"a", subject_of(random)))
    reply = random.choice((b"", b"r ", b"$JS.ACK.S.C.1.1.1.1.0 ", b"\xfe "))
    if kind < 0.8:
        return b"MSG %s 1 %s%d\r\n%s\r\n" % (subject, reply, len(body), body)
    size = len(headers) + len(body)
    wrong = random.choice((0, 0, 0, 1, -1, 10**6)) if kind > 0.95 else 0
    return b"HMSG %s 1 %s%d %d\r\n%s%s\r\n" % (subject, reply, len(headers), size + wrong, headers, body)


def subject_of(random: random.Random) -> bytes:
    """What a server takes as the last token of a subject."""
    return bytes(random.choices(_SUBJECT_BYTES, k=random.randrange(1, 40)))


def block(random: random.Random) -> bytes:
    """A header block, or what stands in the place of one."""
    kind = random.random()
    if kind < 0.3:
        return random.choice(UNREADABLE_HEADERS)
    if kind < 0.6:
        return random.randbytes(random.randrange(1, 60))
    lines = [
        b"".join(random.choices((b"Status", b"x", b": ", b":", b" ", b"404", b"\xff", b"\r", b"\n"), k=4))
        for _ in range(random.randrange(0, 4))
    ]
    return b"NATS/1.0" + random.choice((b"", b" 404 No", b" x")) + b"\r\n" + b"\r\n".join(lines) + b"\r\n\r\n"


class FakeServer:
    """Greets like a NATS server, then says what it is given; counts those who came."""

    def __init__(self, says: Callable[[], bytes]) -> None:
        self._says = says
        self.came = 0
        self.said = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.came += 1
        try:
            writer.write(
                b'INFO {"server_id":"f","version":"2.15.1","max_payload":1048576,"headers":true}\r\n'
            )
            while (line := await reader.readline()) and not line.startswith(b"PING"):
                pass
            writer.write(b"PONG\r\n")
            while not reader.at_eof() and not writer.is_closing():
                writer.write(self._says())
                self.said += 1
                await writer.drain()
                await asyncio.sleep(0)
        except OSError:
            pass
        finally:
            writer.close()


@asynccontextmanager
async def fake(says: Callable[[], bytes]) -> AsyncIterator[tuple[FakeServer, str]]:
    server = FakeServer(says)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    try:
        yield server, f"nats://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    finally:
        listening.close()


class _Told:
    """What the parser tells a client."""

    def __init__(self) -> None:
        self.messages: list[tuple[bytes, bytes, bytes]] = []

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        self.messages.append((subject, headers, data))

    async def _nothing(self, *_: object) -> None:
        pass

    _process_ping = _process_pong = _process_err = _process_info = _error_cb = _nothing


async def parse_many(count: int) -> None:
    rng = random.Random(count)
    for _ in range(count):
        parser = WireParser(_Told())
        whole = b"".join(wire(rng) for _ in range(rng.randrange(1, 5)))
        try:
            for start in range(0, len(whole), 7):
                await parser.parse(whole[start : start + 7])
        except ProtocolError:
            pass
        text = readable(block(rng))
        assert text.isprintable()
        assert all(k.isprintable() and v.isprintable() for k, v in read_headers(block(rng)).items())


async def live_through(count: int) -> None:
    """Against a fake server that says `count` arbitrary things, the client reconnects and never closes."""
    rng = random.Random(count)
    async with fake(lambda: wire(rng)) as (server, url):
        client = Client()

        async def note(_: Exception) -> None: ...

        await client.connect(url, max_reconnect_attempts=-1, reconnect_time_wait=0, error_cb=note)

        async def take(_: object) -> None: ...

        await client.subscribe("a", cb=take)
        while server.said < count:
            # A client that neither reads nor comes back hears no more: this would never end.
            await asyncio.sleep(0.02)
            if client.is_closed:  # an -ERR that ends a client for good; `Connection` ends the process then
                await client.connect(url, max_reconnect_attempts=-1, reconnect_time_wait=0, error_cb=note)
        assert server.came > 1
        await client.close()


async def all_arrive(url: str, connection: Connection, count: int) -> None:
    """What a real server takes reaches a worker and a forward reader, whole and in order."""
    rng = random.Random(count)
    jetstream = connection.jetstream()
    for info in await jetstream.streams_info():
        await jetstream.delete_stream(str(info.config.name))
    await streams.ensure(connection.client, streams=streams.scaled(streams.STREAMS, 256 * 1024**2))
    handled: list[tuple[bytes, bytes, bytes]] = []

    async def handle(messages: list[Message]) -> None:
        handled.extend((m.raw_subject, m.raw_headers, m.data) for m in messages)
        await delivery.ack(messages)

    broker = Broker(settings_for(url), name="fuzz", on_closed=lambda: None)
    broker.subscribe(streams.METERING, handle)  # type: ignore[arg-type]  # our client's messages
    await broker.start()
    sent: list[tuple[bytes, bytes, bytes]] = []
    async with RawPublisher(url) as raw:
        for n in range(count):
            one = (b"agentese.acme." + subject_of(rng), block(rng) if rng.random() < 0.7 else b"", b"%d" % n)
            raw.publish(one[0], one[2], one[1] or None)
            sent.append(one)
            if n % 500 == 499 or n == count - 1:
                # A server that syncs each message stores a flood of them before it serves a consumer.
                await raw.settle()
                while (await jetstream.stream_info("AGENTESE")).state.last_seq <= n:
                    await asyncio.sleep(0.02)
    read: list[tuple[bytes, bytes, bytes]] = []
    while len(read) < count:
        forward = await Forward.opened(connection.client, "AGENTESE", start=len(read) + 1)
        while len(read) < count and not forward.is_lost:
            for message, _ in await forward.batch(limit=500, wait=timedelta(seconds=1)):
                assert isinstance(message, Message)
                read.append((message.raw_subject, message.raw_headers, message.data))
        await forward.close()
    while (await jetstream.consumer_info("AGENTESE", "metering")).ack_floor.stream_seq < count:
        await asyncio.sleep(0.5)
    await broker.stop()
    assert [(subject, body) for subject, _, body in read] == [(subject, body) for subject, _, body in sent]
    # On a busy machine one may come twice.
    assert sorted(set(handled), key=lambda one: int(one[2])) == read
    # A server may set the first line right when it stores a block: what it stored is its word.
    for sequence in range(1, count + 1, count // 200):
        answer = await streams.request(connection.client, "STREAM.MSG.GET.AGENTESE", {"seq": sequence})
        assert base64.b64decode(answer["message"].get("hdrs", "")) == read[sequence - 1][1]


def test_a_header_that_is_written_is_one_header() -> None:
    """Rule: whatever a value holds, it opens no other header and ends no block; a bad name is refused."""
    rng = random.Random(4)
    for _ in range(2000):
        value = "".join(rng.choice("ab :\r\n\t\u00e9\x85\u2028") for _ in range(rng.randrange(8)))
        written = header_block(header_line("Nats-Msg-Id", "one"), header_line("tracestate", value))
        assert written.count(b"\r\n") == 4
        assert written.count(b"\n") == 4
        assert list(read_headers(written)) == ["Nats-Msg-Id", "tracestate"]
    for name in ("", "a b", "a:b", "a\r\nb", "\u00e9"):
        with pytest.raises(BadHeaderError):
            header_line(name, "value")


async def test_the_parser_says_what_it_reads_or_that_it_cannot() -> None:
    """Rule: arbitrary bytes, in arbitrary pieces, end in messages or in a ProtocolError, in nothing else."""
    await parse_many(3000)


async def test_a_server_out_of_its_mind_does_not_end_the_client() -> None:
    """Rule: whatever it says, the client reads on or reconnects."""
    await live_through(2000)


async def test_every_message_a_server_takes_arrives_whole(nats_url: str, connect: Connect) -> None:
    """Rule: any subject, header block and body a real server takes, each reader gets as it was."""
    await all_arrive(nats_url, await connect(nats_url), 2000)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("version", [OLDEST_VERSION, installed_version()])
async def test_a_hundred_thousand_of_each(version: str, tmp_path: Path, connect: Connect) -> None:
    """Rule: the same, long enough to meet what nobody thought of."""
    await parse_many(100_000)
    await live_through(100_000)
    # Nothing is to outlive this server: syncing each message would be most of the time.
    with NatsServer(tmp_path / "nats", version=version, sync_always=False) as server:
        await all_arrive(server.url, await connect(server.url), 100_000)
