"""Readiness tells the truth: whatever stops a worker, it is said within ten seconds, and begun anew."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta

from nats.aio.msg import Msg
from prometheus_client import CollectorRegistry

from kgents_common import delivery, streams
from kgents_common.broker import Broker
from kgents_common.clock import ManualClock
from kgents_common.connection import Connection
from kgents_common.health import Status
from kgents_common.watchdog import WATCH_SECONDS, StallMetrics, Watchdog

from .conftest import settings_for

Connect = Callable[..., Awaitable[Connection]]
# More than an idle worker's loop takes for a turn.
SOON = timedelta(seconds=4)
SMALL = streams.scaled(streams.STREAMS, 64 * 1024**2)


class Worker:
    """Handles messages, unless it is told to hold them."""

    def __init__(self) -> None:
        self.handled = 0
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()

    async def __call__(self, messages: list[Msg]) -> None:
        await self.may_go_on.wait()
        await delivery.ack(messages)
        self.handled += len(messages)

    async def wait_for(self, count: int) -> None:
        async with asyncio.timeout(60):
            while self.handled < count:
                await asyncio.sleep(0.05)


@asynccontextmanager
async def working(url: str, connection: Connection, worker: Worker) -> AsyncIterator[tuple[Watchdog, Broker]]:
    await streams.ensure(connection.client, streams=SMALL)
    watchdog = Watchdog(
        connection, streams.METERING, metrics=StallMetrics(CollectorRegistry()), stalled_after=SOON
    )
    broker = Broker(settings_for(url), name="test", on_closed=lambda: None)
    watchdog.watch(broker.subscribe(streams.METERING, worker))
    await watchdog.start()
    await watchdog.wait()
    await broker.start()
    try:
        yield watchdog, broker
    finally:
        worker.may_go_on.set()
        await broker.stop()
        await watchdog.stop()


async def publish(connection: Connection) -> None:
    await connection.jetstream().publish("agentese.acme.t", b"1")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.05)


def restarts(watchdog: Watchdog) -> float:
    assert watchdog._metrics is not None
    return watchdog._metrics.restarts.labels("metering")._value.get()


async def test_one_that_hears_nothing_pulls_anew(nats_url: str, connect: Connect) -> None:
    """Rule: a worker whose inbox is dead, in a process that looks alive, is not ready, and heals itself."""
    worker = Worker()
    connection = await connect(nats_url)
    async with working(nats_url, connection, worker) as (watchdog, broker):
        await publish(connection)
        await worker.wait_for(1)
        client = broker._faststream.config.connection_state.connection
        for sid in [sid for sid, sub in client._subs.items() if sub.subject.endswith(".*")]:
            client._subs[sid]._cb = None
            del client._subs[sid]
        await publish(connection)  # delivered to nobody: it comes again after `ack_wait`
        await until(lambda: watchdog.check().status is Status.DOWN)
        assert "stalled" in watchdog.check().detail
        await until(lambda: restarts(watchdog) >= 1)
        await publish(connection)
        await worker.wait_for(2)
        await until(lambda: watchdog.check().status is Status.OK)


async def test_one_whose_loop_is_gone_is_begun_anew(nats_url: str, connect: Connect) -> None:
    """Rule: also where FastStream's own loop ended."""
    worker = Worker()
    connection = await connect(nats_url)
    async with working(nats_url, connection, worker) as (watchdog, broker):
        await publish(connection)
        await worker.wait_for(1)
        [subscriber] = broker._faststream.subscribers
        for task in list(subscriber.tasks):  # type: ignore[attr-defined]
            task.cancel()
        await publish(connection)
        await worker.wait_for(2)
        assert restarts(watchdog) >= 1


async def test_one_that_holds_its_batch_is_not_ready_and_not_disturbed(
    nats_url: str, connect: Connect
) -> None:
    """Rule: what is in hand is left to the handler; that nothing moves is said all the same."""
    worker = Worker()
    connection = await connect(nats_url)
    async with working(nats_url, connection, worker) as (watchdog, _):
        worker.may_go_on.clear()
        await publish(connection)
        await asyncio.sleep(0.5)
        await publish(connection)
        await until(lambda: watchdog.check().status is Status.DOWN)
        worker.may_go_on.set()
        await worker.wait_for(2)
        await until(lambda: watchdog.check().status is Status.OK)


async def test_an_idle_consumer_is_not_stalled(nats_url: str, connect: Connect) -> None:
    """Rule: stalled is who does not move although something waits; said before ten seconds have passed."""
    connection = await connect(nats_url)
    await streams.ensure(connection.client, streams=SMALL)
    clock = ManualClock()
    watchdog = Watchdog(connection, streams.METERING, clock)
    await watchdog.look()
    clock.advance(timedelta(hours=1))
    await watchdog.look()
    assert watchdog.stalled_seconds == 0
    await publish(connection)
    await watchdog.look()
    clock.advance(timedelta(seconds=10 - 2 * WATCH_SECONDS))
    await watchdog.look()
    assert watchdog.stalled_seconds == 10 - 2 * WATCH_SECONDS
