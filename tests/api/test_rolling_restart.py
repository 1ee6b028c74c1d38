"""Two doors behind a client that takes turns, restarted in turn: nothing accepted fails or is lost."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import nats
import pytest

from kgents_common import keyring
from kgents_devstack.servers import NatsServer, apply_streams
from kgents_devstack.services import ServiceProcess
from kgents_devstack.waiting import HANGS_AFTER_SECONDS

from .conftest import encoded, event
from .live_streams import LiveStream

GRACE_SECONDS = 15
SINGLES = 8
BATCHES = 3
BATCH_EVENTS = 10
STREAMS = 3
# Steady, not as fast as it goes: a nats-server that syncs without a pause hardly delivers to anybody.
PAUSE_SECONDS = 0.03


class Connection:
    """One keep-alive connection of HTTP/1.1."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.is_over = False

    async def post(self, key: str, body: bytes, kind: str) -> tuple[int, bytes]:
        head = (
            f"POST /v1/events HTTP/1.1\r\nhost: api\r\nauthorization: Bearer {key}\r\n"
            f"content-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        self.writer.write(head.encode() + body)
        async with asyncio.timeout(HANGS_AFTER_SECONDS):
            lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
            headers = dict(line.split(": ", 1) for line in lines[1:] if line)
            answer = await self.reader.readexactly(int(headers["content-length"]))
        self.is_over = headers.get("connection") == "close"
        return int(lines[0].split()[1]), answer


@dataclass
class Load:
    """What clients saw.

    Attributes:
        accepted: Ids of every 202.
        failures: What no client may see.
    """

    key: str
    ports: list[int]
    accepted: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    refused_connections: int = 0
    asked_to_close: int = 0
    is_over: bool = False
    last_sequence: int | None = None

    async def post_without_end(self, count: int) -> None:
        """Requests of `count` events over keep-alive connections, to each port in turn."""
        connections: dict[int, Connection] = {}
        for port in itertools.cycle(self.ports):
            if self.is_over:
                break
            connection = connections.pop(port, None)
            if connection is None or connection.reader.at_eof():  # closed before anything was sent
                try:
                    connection = Connection(*await asyncio.open_connection("127.0.0.1", port))
                except ConnectionRefusedError:
                    self.refused_connections += 1
                    await asyncio.sleep(0.002)
                    continue
            names = [uuid.uuid4().hex for _ in range(count)]
            kind = "application/cloudevents+json" if count == 1 else "application/cloudevents-batch+json"
            body = encoded(names[0]) if count == 1 else json.dumps([event(n) for n in names]).encode()
            try:
                status, answer = await connection.post(self.key, body, kind)
            except (OSError, EOFError, TimeoutError) as error:
                self.failures.append(repr(error))
                continue
            if status != 202:
                self.failures.append(f"{status} {answer!r}")
                continue
            self.accepted += names
            if connection.is_over:
                self.asked_to_close += 1
                connection.writer.close()
            else:
                connections[port] = connection
            await asyncio.sleep(PAUSE_SECONDS)
        for connection in connections.values():
            connection.writer.close()

    async def follow(self, port: int, seen: list[int]) -> None:
        """The live stream from process to process, going on after the last event seen, up to the last."""
        after: str | None = None
        for to in itertools.cycle([port, *(p for p in self.ports if p != port)]):
            try:
                stream = await LiveStream(to, self.key, after=after).open()
            except ConnectionRefusedError:
                await asyncio.sleep(0.01)
                continue
            while not (stream.has_ended or stream.is_cut or stream.last_sequence == self.last_sequence):
                await asyncio.sleep(0.02)
            if stream.status != 200 or stream.is_cut:
                self.failures.append(f"stream: {stream.status}, cut: {stream.is_cut}")
                break
            seen += [received.sequence for received in stream.received]
            await stream.close()
            if stream.last_sequence == self.last_sequence:
                break
            after = stream.last_id


@contextmanager
def doors(
    directory: Path, nats_server: NatsServer, count: int, **environment: str
) -> Iterator[tuple[list[ServiceProcess], str, ThreadPoolExecutor]]:
    """Processes of one deployment, the key of acme, and the thread to start them from."""
    apply_streams(nats_server.url)
    key, record = keyring.mint("acme", keyring.TENANT_SCOPES)
    keyring.write(directory / "keys.json", [record])
    told = {
        "NATS_SERVERS": nats_server.url,
        "KGENTS_KEYRING_FILE": str(directory / "keys.json"),
        "KGENTS_DRAIN_SECONDS": str(GRACE_SECONDS),
        **environment,
    }
    with ThreadPoolExecutor(1) as thread, ExitStack() as running:
        services = [ServiceProcess("api", directory / f"api-{n}", told) for n in range(count)]
        for service in services:
            running.callback(service.stop)
            thread.submit(service.start).result()
        yield services, key, thread


async def stored(nats_server: NatsServer) -> list[tuple[int, str]]:
    """Sequence and id of every message of AGENTESE."""
    client = await nats.connect(nats_server.url)
    try:
        state = (await client.jetstream().stream_info("AGENTESE")).state
        subscription = await client.jetstream().subscribe("agentese.>", ordered_consumer=True)
        found: list[tuple[int, str]] = []
        while len(found) < state.messages:
            message = await subscription.next_msg(20)
            found.append((message.metadata.sequence.stream, json.loads(message.data)["id"]))
        return found
    finally:
        await client.close()


@pytest.mark.parametrize("delay_seconds", [pytest.param(0, marks=pytest.mark.long), 1])
async def test_a_rolling_restart_loses_and_fails_nothing(
    tmp_path: Path, own_nats: NatsServer, delay_seconds: int
) -> None:
    """Rule: every 202 is stored exactly once; clients see refused connections, or one that was closed before
    they sent; a stream ends properly and goes on elsewhere without a hole; the process exits 0 in time."""
    settings = {"KGENTS_DRAIN_DELAY_SECONDS": str(delay_seconds)}
    with doors(tmp_path, own_nats, 2, **settings) as (services, key, thread):
        load = Load(key, [service.port for service in services])
        seen: list[list[int]] = [[] for _ in range(STREAMS)]
        posting = [
            asyncio.create_task(load.post_without_end(count))
            for count in [1] * SINGLES + [BATCH_EVENTS] * BATCHES
        ]
        following = [
            asyncio.create_task(load.follow(load.ports[n % 2], sequences)) for n, sequences in enumerate(seen)
        ]
        for service in services * 2:
            before = len(load.accepted)
            while len(load.accepted) < before + 200:
                await asyncio.sleep(0.05)
            service.signal(signal.SIGTERM)
            assert await asyncio.to_thread(service.wait, GRACE_SECONDS) == 0
            await asyncio.wrap_future(thread.submit(service.start))
        load.is_over = True
        await asyncio.gather(*posting)
        messages = await stored(own_nats)
        load.last_sequence = messages[-1][0]
        async with asyncio.timeout(HANGS_AFTER_SECONDS):
            await asyncio.gather(*following)
        logs = "".join(service.log_path.read_text() for service in services)
    assert load.failures == []
    assert load.refused_connections > 0
    assert load.asked_to_close > 0
    assert Counter(name for _, name in messages) == Counter(load.accepted)
    for stream in seen:
        assert stream == [sequence for sequence, _ in messages if sequence >= stream[0]]
    assert "Traceback" not in logs
    assert "drain_cut_short" not in logs


async def test_while_the_balancer_has_not_heard_new_connections_are_served(
    tmp_path: Path, own_nats: NatsServer
) -> None:
    """Rule: for the drain delay the process is not ready, takes what comes, and asks clients to leave; then
    its port is closed."""
    settings = {"KGENTS_DRAIN_DELAY_SECONDS": "3"}
    with doors(tmp_path, own_nats, 1, **settings) as ((service,), key, _):
        async with (
            LiveStream(service.port, key) as stream,
            httpx.AsyncClient(base_url=service.url, timeout=20) as client,
        ):
            headers = {"authorization": f"Bearer {key}", "content-type": "application/cloudevents+json"}
            service.signal(signal.SIGTERM)
            while (await client.get("/health/ready")).status_code == 200:
                await asyncio.sleep(0.02)
            late = await client.post("/v1/events", content=encoded("late"), headers=headers)
            assert (late.status_code, late.headers["connection"]) == (202, "close")
            assert (await client.get("/health/live")).status_code == 200
            await stream.events(1)
            assert not stream.has_ended
            assert await asyncio.to_thread(service.wait, GRACE_SECONDS) == 0
            await stream.until(lambda: stream.has_ended)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", service.port)
    assert [name for _, name in await stored(own_nats)] == ["late"]
