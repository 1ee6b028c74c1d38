"""Every answer comes below the prefix that is set: a NATS user may be let hear its own and nobody else's."""

from __future__ import annotations

import asyncio

from nats.aio.msg import Msg

from kgents_common import delivery, streams
from kgents_common.broker import Broker
from kgents_common.connection import Connection
from kgents_common.publisher import Publisher
from kgents_common.pull import Forward
from kgents_common.settings import ServiceSettings
from kgents_common.watchdog import Watchdog

PREFIX = "_INBOX.metering"
SMALL = streams.scaled(streams.STREAMS, 64 * 1024**2)


async def test_requests_publishes_pulls_and_workers_listen_below_it(nats_url: str) -> None:
    """Rule: the prefix holds for every way of ours to be answered, FastStream's too."""
    settings = ServiceSettings(nats_servers=(nats_url,), nats_inbox_prefix=PREFIX)
    connection = Connection(settings, name="test", on_closed=lambda: None)
    await connection.start()
    await connection.wait()
    await streams.ensure(connection.client, streams=SMALL)
    publisher = Publisher(connection)
    await publisher.start()
    handled = asyncio.Event()

    async def handle(messages: list[Msg]) -> None:
        await delivery.ack(messages)
        handled.set()

    watchdog = Watchdog(connection, streams.METERING)
    await watchdog.look()
    broker = Broker(settings, name="test", on_closed=lambda: None)
    broker.subscribe(streams.METERING, handle)
    await broker.start()
    await publisher.publish("agentese.acme.t", b"1", message_id="1")
    await handled.wait()
    forward = await Forward.opened(connection.client, "AGENTESE", start=1)
    clients = [connection.client, broker._faststream.config.connection_state.connection]
    subjects = [sub.subject for client in clients for sub in client._subs.values()]
    await forward.close()
    await broker.stop()
    await publisher.stop()
    await connection.stop()
    assert len(subjects) >= 5
    assert all(subject.startswith(f"{PREFIX}.") for subject in subjects)
