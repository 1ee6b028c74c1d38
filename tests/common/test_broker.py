"""Consumers stay alive: whatever happens to server or consumer, each message is handled in the end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest
from nats.aio.msg import Msg

from kgents_common import broker as broker_module
from kgents_common import delivery, streams
from kgents_common.broker import Broker, Intake
from kgents_common.connection import Connection
from kgents_common.hands import Hands
from kgents_common.watchdog import Watchdog
from kgents_devstack.servers import NatsServer
from kgents_devstack.waiting import HANGS_AFTER_SECONDS

from .conftest import settings_for

Connect = Callable[..., Awaitable[Connection]]
SMALL = streams.scaled(streams.STREAMS, 64 * 1024**2)


class Handled:
    """Remembers what it acknowledged."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    async def __call__(self, messages: list[Msg]) -> None:
        self.bodies += [message.data for message in messages]
        await delivery.ack(messages)

    async def wait_for(self, count: int) -> None:
        async with asyncio.timeout(HANGS_AFTER_SECONDS):
            while len(set(self.bodies)) < count:
                await asyncio.sleep(0.05)


async def publish(connection: Connection, start: int, count: int) -> None:
    jetstream = connection.jetstream()
    for number in range(start, start + count):
        await jetstream.publish("agentese.acme.t", str(number).encode())


async def started(url: str, connect: Connect, handler: Callable[[list[Msg]], Awaitable[None]]) -> tuple[
    Connection, Watchdog, Broker
]:  # fmt: skip
    connection = await connect(url, buffer_while_down=True)
    await streams.ensure(connection.client, streams=SMALL)
    watchdog = Watchdog(connection, streams.METERING)
    await watchdog.start()
    broker = Broker(settings_for(url), name="test", on_closed=lambda: None)
    broker.subscribe(streams.METERING, handler, batch_size=50)
    await broker.start()
    return connection, watchdog, broker


async def test_a_deleted_consumer_is_put_back_where_it_stood(nats_url: str, connect: Connect) -> None:
    """Rule: a watchdog recreates a lost consumer at its ack floor (FastStream would spin for ever)."""
    handled = Handled()
    connection, watchdog, broker = await started(nats_url, connect, handled)
    await publish(connection, 0, 100)
    await handled.wait_for(100)
    await watchdog.look()
    await connection.jetstream().delete_consumer("AGENTESE", "metering")
    await publish(connection, 100, 100)
    await handled.wait_for(200)
    await broker.stop()
    await watchdog.stop()
    assert sorted(map(int, handled.bodies)) == list(range(200))


async def test_a_killed_server_loses_nothing_and_workers_resume(
    own_nats: NatsServer, connect: Connect
) -> None:
    """Rule: nats-server killed and restarted, workers resume by themselves."""
    handled = Handled()
    connection, watchdog, broker = await started(own_nats.url, connect, handled)
    await publish(connection, 0, 100)
    await handled.wait_for(100)
    own_nats.kill()
    await asyncio.sleep(0.5)
    own_nats.start()
    async with asyncio.timeout(HANGS_AFTER_SECONDS):
        while not connection.is_connected:
            await asyncio.sleep(0.05)
    await publish(connection, 100, 100)
    await handled.wait_for(200)
    await broker.stop()
    await watchdog.stop()
    assert set(map(int, handled.bodies)) == set(range(200))


async def test_one_bad_message_does_not_take_its_batch(nats_url: str, connect: Connect) -> None:
    """Rule: handlers get raw messages; FastStream's default would terminate all of them."""
    handled = Handled()
    connection, watchdog, broker = await started(nats_url, connect, handled)
    jetstream = connection.jetstream()
    for body in (b"1", b"\xff{", b"2"):
        await jetstream.publish("agentese.acme.t", body, headers={"content-type": "application/json"})
    await handled.wait_for(3)
    await broker.stop()
    await watchdog.stop()
    assert handled.bodies == [b"1", b"\xff{", b"2"]


async def test_a_handler_that_fails_gets_its_messages_again(nats_url: str, connect: Connect) -> None:
    """Rule: an exception acknowledges nothing, and terminates nothing."""
    tries: list[int] = []

    async def failing(messages: list[Msg]) -> None:
        tries.extend(message.metadata.num_delivered for message in messages)
        if len(tries) < 3:
            for message in messages:
                await message.nak()
            raise RuntimeError("not yet")
        await delivery.ack(messages)

    connection, watchdog, broker = await started(nats_url, connect, failing)
    await publish(connection, 0, 1)
    async with asyncio.timeout(HANGS_AFTER_SECONDS):
        while len(tries) < 3:
            await asyncio.sleep(0.05)
    await broker.stop()
    await watchdog.stop()
    assert tries == [1, 2, 3]


async def test_a_steady_trickle_is_never_delivered_twice(nats_url: str, connect: Connect) -> None:
    """Rule: what was fetched is handled: nothing waits for `ack_wait` because a fetch timed out."""
    deliveries: list[int] = []

    async def note(messages: list[Msg]) -> None:
        deliveries.extend(message.metadata.num_delivered for message in messages)
        await delivery.ack(messages)

    connection, watchdog, broker = await started(nats_url, connect, note)
    jetstream = connection.jetstream()
    for number in range(1500):
        await jetstream.publish("agentese.acme.t", str(number).encode())
        await asyncio.sleep(0.002)
    async with asyncio.timeout(15):  # less than ack_wait: a message that was dropped would come too late
        while len(deliveries) < 1500:
            await asyncio.sleep(0.05)
    await broker.stop()
    await watchdog.stop()
    assert set(deliveries) == {1}


async def test_a_stop_gives_back_what_was_fetched(
    nats_url: str, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: a stop leaves nothing to wait for `ack_wait`: the next worker has it at once."""
    monkeypatch.setattr(
        broker_module, "COLLECT_SECONDS", HANGS_AFTER_SECONDS
    )  # a batch that is not whole yet
    connection, watchdog, broker = await started(nats_url, connect, Handled())
    info = await connection.jetstream().consumer_info("AGENTESE", "metering")
    info.config.ack_wait = 10 * HANGS_AFTER_SECONDS
    await connection.jetstream().add_consumer("AGENTESE", info.config)
    await publish(connection, 0, 10)
    async with asyncio.timeout(HANGS_AFTER_SECONDS):
        while (await connection.jetstream().consumer_info("AGENTESE", "metering")).num_ack_pending == 0:
            await asyncio.sleep(0.05)
    await broker.stop()
    monkeypatch.undo()
    await _all_handled_by_the_next(nats_url, 10)
    await watchdog.stop()


async def _all_handled_by_the_next(url: str, count: int) -> None:
    handled = Handled()
    after = Broker(settings_for(url), name="next", on_closed=lambda: None)
    after.subscribe(streams.METERING, handled, batch_size=50)
    await after.start()
    await handled.wait_for(count)
    await after.stop()
    assert len(handled.bodies) == count


async def test_while_a_worker_finishes_it_takes_no_more(nats_url: str, connect: Connect) -> None:
    """Rule: what waits is not fetched and given back until it looks like a message that never succeeds."""
    deliveries: list[int] = []
    finished: list[Msg] = []
    begun, may_end = asyncio.Event(), asyncio.Event()

    async def work(message: Msg) -> None:
        begun.set()
        await may_end.wait()
        await delivery.ack([message])
        finished.append(message)

    def alone(message: Msg) -> list[Msg]:
        return [message]

    hands = Hands("test", count=1, waiting=1, work=work, messages=alone, after_failure=timedelta())
    await hands.start()

    async def handle(messages: list[Msg]) -> None:
        deliveries.extend(message.metadata.num_delivered for message in messages)
        for message in messages:
            await hands.put(message)

    connection, watchdog, broker = await started(nats_url, connect, handle)
    await publish(connection, 0, 10)
    await begun.wait()
    await Intake(broker).stop()
    finishing = asyncio.create_task(hands.stop())
    await publish(connection, 10, 10)
    await asyncio.sleep(0.5)  # time enough for a hundred rounds
    may_end.set()
    await finishing
    await asyncio.sleep(0.5)
    await broker.stop()
    assert len(deliveries) <= 10
    await _all_handled_by_the_next(nats_url, 20 - len(finished))
    await watchdog.stop()


async def test_a_batch_has_a_bound_in_bytes(
    nats_url: str, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: large messages come a few at a time, however many a batch may hold."""
    monkeypatch.setattr(broker_module, "BATCH_BYTES", 1)  # never less than two of the largest messages
    connection = await connect(nats_url)
    await streams.ensure(connection.client, streams=SMALL)
    jetstream = connection.jetstream()
    for number in range(12):
        await jetstream.publish("agentese.acme.t", b"%02d" % number + b"x" * 500_000)
    handled = Handled()
    sizes: list[int] = []

    async def handle(messages: list[Msg]) -> None:
        sizes.append(sum(len(message.data) for message in messages))
        await handled(messages)

    broker = Broker(settings_for(nats_url), name="test", on_closed=lambda: None)
    broker.subscribe(streams.METERING, handle, batch_size=50)
    await broker.start()
    await handled.wait_for(12)
    await broker.stop()
    # A fetch asks up to three times: for what is there, for one, and for what came right behind it.
    assert max(sizes) <= 2 * 2 * connection.client.max_payload


async def test_a_client_closed_for_good_is_told(own_nats: NatsServer) -> None:
    """Rule: a closed client ends the process instead of leaving a zombie."""
    closed = asyncio.Event()
    connection = Connection(settings_for(own_nats.url), name="test", on_closed=closed.set)
    await connection.start()
    await connection.wait()
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(closed.wait(), 0.1)
    # What an oversize message does: the server answers -ERR, and nats-py never reconnects.
    client = connection.client
    await client._process_err("'Maximum Payload Violation'")
    assert client._closing in asyncio.all_tasks()  # held by the client: asyncio holds it weakly
    await asyncio.wait_for(closed.wait(), HANGS_AFTER_SECONDS)
    await connection.stop()
