"""Every publish ends: stored, refused or not durable; nothing waits for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import pytest

from kgents_common import envelope, streams
from kgents_common.connection import Connection
from kgents_common.errors import NotDurableError, PermanentError, TransientError
from kgents_common.publisher import (
    EXPECTED_LAST_SUBJECT_SEQUENCE,
    Ack,
    AlreadyThereError,
    Message,
    MessageIds,
    Publisher,
)
from kgents_common.resilience import CircuitBreaker, CircuitState
from kgents_devstack.servers import NatsServer
from kgents_devstack.waiting import HANGS_AFTER_SECONDS

Connect = Callable[..., Awaitable[Connection]]
# An acknowledgement comes when it comes: only the tests of its time-out have one that is short.
PATIENCE = timedelta(seconds=HANGS_AFTER_SECONDS)
SMALL = streams.scaled(streams.STREAMS, 64 * 1024**2)


async def test_a_message_that_is_sent_again_is_stored_once(nats_url: str, connect: Connect) -> None:
    """Rule: JetStream drops a true repeat."""
    connection = await connect(nats_url)
    await streams.ensure(connection.client, streams=SMALL)
    publisher = Publisher(connection, timeout=PATIENCE)
    await publisher.start()
    event = envelope.read(
        b'{"specversion":"1.0","id":"1","source":"s","type":"t"}', tenant="acme", now=datetime.now(UTC)
    )
    sent = Message.of(event, {}, MessageIds())
    [first, again] = await publisher.publish_all([sent, sent])
    await publisher.stop()
    assert isinstance(first, Ack)
    assert isinstance(again, Ack)
    assert (first.duplicate, again.duplicate, again.seq) == (False, True, first.seq)


async def test_two_thousand_in_flight_all_end(nats_url: str, connect: Connect) -> None:
    """Rule: pipelined acknowledgements find their own message."""
    connection = await connect(nats_url)
    await streams.ensure(connection.client, streams=SMALL)
    publisher = Publisher(connection, timeout=PATIENCE)
    await publisher.start()
    futures = [
        await publisher.send("agentese.acme.t", str(i).encode(), message_id=str(i)) for i in range(2000)
    ]
    acks = await asyncio.gather(*futures)
    await publisher.stop()
    assert [ack.seq for ack in acks] == list(range(1, 2001))
    assert publisher.in_flight == 0


async def test_a_taken_subject_is_told_apart(nats_url: str, connect: Connect) -> None:
    """Rule: appending where nothing may be yet is how an event id is stored once without a time window."""
    connection = await connect(nats_url)
    await streams.ensure(connection.client, streams=SMALL)
    publisher = Publisher(connection, timeout=PATIENCE)
    await publisher.start()
    headers = {EXPECTED_LAST_SUBJECT_SEQUENCE: "0"}
    await publisher.publish("events.stripe.live.x.evt_1", b"{}", message_id="a", headers=headers)
    for message_id in (
        "b",
        "a",
    ):  # a server of 2.10 knows the second as a repeat before it looks at the subject
        with pytest.raises(AlreadyThereError):
            await publisher.publish(
                "events.stripe.live.x.evt_1", b"{}", message_id=message_id, headers=headers
            )
    await publisher.stop()


async def test_a_subject_without_a_stream_is_not_durable(nats_url: str, connect: Connect) -> None:
    """Rule: no stream, no acknowledgement, and that is said at once."""
    publisher = Publisher(await connect(nats_url))
    await publisher.start()
    with pytest.raises(NotDurableError):
        await publisher.publish("agentese.acme.t", b"{}", message_id="1")
    await publisher.stop()


async def test_headers_count_towards_the_payload_limit(nats_url: str, connect: Connect) -> None:
    """Rule: past the limit nats-py's connection is closed for good, so it is never reached."""
    connection = await connect(nats_url)
    await streams.ensure(connection.client, streams=SMALL)
    publisher = Publisher(connection, timeout=PATIENCE)
    await publisher.start()
    with pytest.raises(PermanentError):
        await publisher.publish(
            "agentese.acme.t", b"x" * (1024 * 1024 - 100), message_id="1", headers={"a": "b" * 200}
        )
    assert connection.is_connected
    await publisher.publish("agentese.acme.t", b"x", message_id="2")
    await publisher.stop()


async def test_headers_that_are_too_large_close_no_client(own_nats: NatsServer, connect: Connect) -> None:
    """Rule: the server counts headers, too, and closes whoever sends more; such a message is refused here."""
    connection = await connect(own_nats.url)
    await streams.ensure(connection.client, streams=SMALL)
    publisher = Publisher(connection, timeout=PATIENCE)
    await publisher.start()
    most = connection.client.max_payload
    with pytest.raises(PermanentError):
        await publisher.publish("agentese.acme.t", b"small", message_id="1", headers={"h": "v" * most})
    with pytest.raises(PermanentError):  # what JetStream itself takes of headers is less
        await publisher.publish("agentese.acme.t", b"small", message_id="2", headers={"h": "v" * 70_000})
    ack = await publisher.publish("agentese.acme.t", b"small", message_id="3", headers={"h": "v" * 60_000})
    assert ack.seq == 1
    await publisher.stop()
    assert connection.is_reading
    assert connection.client.stats["reconnects"] == 0


async def test_a_killed_server_leaves_no_future_behind(own_nats: NatsServer, connect: Connect) -> None:
    """Rule: every call ends; what was acknowledged is there after the restart; the rest can be repeated."""
    connection = await connect(own_nats.url)
    await streams.ensure(connection.client, streams=SMALL)
    publisher = Publisher(connection, timeout=timedelta(seconds=2))
    await publisher.start()
    acked: set[int] = set()

    async def publish(number: int) -> None:
        while True:
            try:
                await publisher.publish("agentese.acme.t", str(number).encode(), message_id=str(number))
                acked.add(number)
                return
            except TransientError:
                await asyncio.sleep(0.05)

    tasks = [asyncio.create_task(publish(n)) for n in range(500)]
    await asyncio.sleep(0.02)
    own_nats.kill()
    tasks += [asyncio.create_task(publish(n)) for n in range(500, 600)]
    await asyncio.sleep(0.5)
    own_nats.start()
    async with asyncio.timeout(HANGS_AFTER_SECONDS):
        await asyncio.gather(*tasks)
    info = await connection.jetstream().stream_info("AGENTESE")
    await publisher.stop()
    assert len(acked) == 600
    assert info.state.messages == 600


async def test_down_it_refuses_at_once_and_recovers(own_nats: NatsServer, connect: Connect) -> None:
    """Rule: with the circuit open a door answers 503 without waiting; back, it publishes again."""
    connection = await connect(own_nats.url)
    await streams.ensure(connection.client, streams=SMALL)
    breaker = CircuitBreaker("nats", threshold=3, window=5, rest=timedelta(milliseconds=200))
    publisher = Publisher(connection, timeout=timedelta(seconds=1), breaker=breaker)
    await publisher.start()
    await publisher.publish("agentese.acme.t", b"1", message_id="1")
    own_nats.kill()
    for _ in range(5):
        with pytest.raises(TransientError):
            await publisher.publish("agentese.acme.t", b"2", message_id="2")
    assert breaker.state is not CircuitState.CLOSED
    own_nats.start()
    async with asyncio.timeout(HANGS_AFTER_SECONDS):
        while True:
            try:
                await publisher.publish("agentese.acme.t", b"2", message_id="2")
                break
            except TransientError:
                await asyncio.sleep(0.1)
    assert breaker.state is CircuitState.CLOSED
    await publisher.stop()
