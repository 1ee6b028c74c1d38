"""A message nobody can read is handed on like any other; it ends no loop and holds up nobody."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from kgents_common import delivery, streams
from kgents_common.broker import Broker
from kgents_common.connection import Connection, Message
from kgents_common.publisher import stored_ids
from kgents_common.pull import Forward
from kgents_common.watchdog import Watchdog
from kgents_devstack.raw_nats import UNREADABLE_HEADERS, UNREADABLE_SUBJECTS, RawPublisher
from kgents_devstack.servers import NatsServer

from .conftest import settings_for

Connect = Callable[..., Awaitable[Connection]]
SMALL = streams.scaled(streams.STREAMS, 64 * 1024**2)
STATUS = b"NATS/1.0\r\nStatus: 404\r\nNats-Msg-Id: a-status\r\n\r\n"


async def publish_unreadable(url: str, connection: Connection) -> list[tuple[bytes, bytes]]:
    """Every kind, each followed by a plain message; subject and header block of each, in order."""
    sent: list[tuple[bytes, bytes]] = []
    async with RawPublisher(url) as raw:
        for subject, headers in (
            *((b"agentese.acme." + tail, None) for tail in UNREADABLE_SUBJECTS),
            *((b"agentese.acme.t", block) for block in (*UNREADABLE_HEADERS, STATUS)),
        ):
            for where, block in ((subject, headers), (b"agentese.globex.t", None)):
                raw.publish(where, b"%d" % len(sent), block)
                sent.append((where, block or b""))
        await raw.settle()
    while (await connection.jetstream().stream_info("AGENTESE")).state.last_seq < len(sent):
        await asyncio.sleep(0.02)
    return sent


async def test_a_worker_gets_them_whole_and_goes_on(each_nats_server: NatsServer, connect: Connect) -> None:
    """Rule: raw subject and headers are handed on; nothing is swallowed, nobody waits."""
    url = each_nats_server.url
    connection = await connect(url, buffer_while_down=True)
    await _fresh(connection)
    got: list[Msg] = []

    async def handle(messages: list[Msg]) -> None:
        got.extend(messages)
        await delivery.ack(messages)

    watchdog = Watchdog(connection, streams.METERING)
    await watchdog.start()
    broker = Broker(settings_for(url), name="test", on_closed=lambda: None)
    broker.subscribe(streams.METERING, handle, batch_size=5)
    await broker.start()
    sent = await publish_unreadable(url, connection)
    async with asyncio.timeout(15):  # less than ack_wait: what is swallowed would come again after it
        while len(got) < len(sent):
            await asyncio.sleep(0.05)
    await broker.stop()
    await watchdog.stop()
    assert [m.data for m in got] == [b"%d" % n for n in range(len(sent))]
    assert all(isinstance(m, Message) for m in got)
    assert [(m.raw_subject, m.raw_headers) for m in got if isinstance(m, Message)] == sent


async def test_the_text_of_a_message_can_be_stored_anywhere(nats_url: str, connect: Connect) -> None:
    """Rule: subject and headers as text hold no byte that Postgres, JSON or a terminal refuses."""
    connection = await connect(nats_url)
    await _fresh(connection)
    sent = await publish_unreadable(nats_url, connection)
    forward = await Forward.opened(connection.client, "AGENTESE", start=1)
    found = await forward.batch(limit=len(sent), wait=timedelta(seconds=5))
    await forward.close()
    for message, _ in found:
        for text in (message.subject, *(message.headers or {}), *(message.headers or {}).values()):
            assert text.isprintable()


async def test_a_status_is_told_by_the_protocol(each_nats_server: NatsServer, connect: Connect) -> None:
    """Rule: the look-up of a spool finds a message whose header is named `Status`."""
    connection = await connect(each_nats_server.url)
    await _fresh(connection)
    await publish_unreadable(each_nats_server.url, connection)
    found = await stored_ids(
        connection,
        stream="AGENTESE",
        subject="agentese.acme.>",
        since=datetime.now(UTC) - timedelta(minutes=5),
        wanted=["a-status", "another"],
    )
    assert set(found) == {"a-status"}


async def test_nobody_elses_message_is_taken_for_a_delivery(nats_url: str, connect: Connect) -> None:
    """Rule: what JetStream did not deliver for this consumer is neither counted nor handed on."""
    connection = await connect(nats_url)
    await _fresh(connection)
    await connection.jetstream().publish("agentese.acme.t", b"1")
    forward = await Forward.opened(connection.client, "AGENTESE", start=1)
    asked = asyncio.create_task(forward.batch(limit=2, wait=timedelta(seconds=1)))
    await asyncio.sleep(0.2)
    inbox = f"{forward._pull._inbox}.1"
    for reply in ("$JS.ACK.AGENTESE.other.1.2.2.1.0", "$JS.ACK.AGENTESE.x.1.two.2.1.0", "other.inbox", ""):
        await connection.client.publish(inbox, b"forged", reply=reply)
    found = await asked
    await forward.close()
    assert [message.data for message, _ in found] == [b"1"]


async def test_a_read_loop_that_ends_is_begun_anew_at_once(own_nats: NatsServer, connect: Connect) -> None:
    """Rule: whatever ends the loop, the client reconnects then, not after three pings."""
    connection = await connect(own_nats.url, buffer_while_down=True)
    client = connection.client

    async def unthought_of(data: bytes = b"") -> None:
        raise ZeroDivisionError

    read, client._ps.parse = client._ps.parse, unthought_of  # type: ignore[method-assign]
    async with asyncio.timeout(10):
        while client.restarts == 0:
            with contextlib.suppress(NatsError, TimeoutError):
                await client.request("$JS.API.INFO", b"", timeout=0.2)
    client._ps.parse = read  # type: ignore[method-assign]
    async with asyncio.timeout(8):
        while not client.is_reading:
            await asyncio.sleep(0.05)
    assert (await client.request("$JS.API.INFO", b"", timeout=5)).data


async def test_a_pong_nobody_waits_for_any_more_ends_nothing(own_nats: NatsServer, connect: Connect) -> None:
    """Rule: a flush that gave up leaves its PONG to come late (nats-py's loop would end silently)."""
    connection = await connect(own_nats.url)
    client = connection.client
    given_up: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    await client._send_ping(given_up)
    given_up.cancel()
    await client.flush()
    assert client.is_reading
    assert client.restarts == 0


async def _fresh(connection: Connection) -> None:
    jetstream = connection.jetstream()
    for info in await jetstream.streams_info():
        await jetstream.delete_stream(str(info.config.name))
    await streams.ensure(connection.client, streams=SMALL)
