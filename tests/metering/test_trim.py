"""Raw events leave the stream only when they are applied, archived and verified, and old enough."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import msgspec
import nats
import pytest
from nats.js import JetStreamContext
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from kgents_common import rfc3339, streams
from kgents_common.clock import SystemClock
from kgents_common.connection import Connection
from kgents_common.settings import ServiceSettings
from kgents_common.telemetry import new_registry
from kgents_metering.handlers.trim import Trimmer
from kgents_metering.metrics import Metrics
from kgents_metering.model.event import Event, classify
from kgents_metering.sinks.ledger.apply import Ledger

from .messages import body, message

Pool = AsyncConnectionPool[AsyncConnection]
SMALL = streams.scaled(streams.STREAMS, 64 * 1024**2)


class World:
    """Ten events in AGENTESE, a ledger, and what backup said."""

    def __init__(self, jetstream: JetStreamContext, connection: Connection, pool: Pool, created: str) -> None:
        self.jetstream = jetstream
        self._connection = connection
        self._pool = pool
        self.created = created

    async def say_kept(self, last: int, created: str | None = None) -> None:
        fact = {"data": {"created": created or self.created, "last_sequence": last}}
        await self.jetstream.publish("events.backup.kept.AGENTESE", msgspec.json.encode(fact))

    async def apply(self, ledger: Ledger, *sequences: int) -> None:
        epoch = rfc3339.moment(self.created)
        events = [classify(message(seq, body(f"e{seq}"), epoch=epoch)) for seq in sequences]
        await ledger.apply([event for event in events if isinstance(event, Event)], [])

    async def trim(self, keep: timedelta = timedelta()) -> tuple[int, int]:
        """The stream's first sequence and how many messages it has, after a round."""
        clock, metrics = SystemClock(), Metrics(new_registry())
        await Trimmer(self._pool, self._connection, keep=keep, clock=clock, metrics=metrics).run()
        state = (await self.jetstream.stream_info("AGENTESE")).state
        return state.first_seq, state.messages


@pytest.fixture
async def world(nats_url: str, pool: Pool) -> Any:
    client = await nats.connect(nats_url)
    await streams.ensure(client, streams=SMALL)
    for number in range(1, 11):
        await client.jetstream().publish("agentese.acme.llm.tokens", body(f"e{number}"))
    connection = Connection(ServiceSettings(nats_servers=(nats_url,)), name="test", on_closed=lambda: None)
    await connection.start()
    await connection.wait()
    created = (await streams.request(client, "STREAM.INFO.AGENTESE"))["created"]
    yield World(client.jetstream(), connection, pool, created)
    await connection.stop()
    await client.close()


async def test_what_is_applied_and_archived_and_old_enough_leaves(world: World, ledger: Ledger) -> None:
    """Rule: nothing is purged that is not all three; the lowest of them decides."""
    await world.apply(ledger, *range(1, 11))
    assert await world.trim() == (1, 10), "nobody said that it is archived"
    await world.say_kept(8, created="2020-01-01T00:00:00Z")
    assert await world.trim() == (1, 10), "another stream of this name is"
    await world.say_kept(8)
    assert await world.trim(keep=timedelta(hours=1)) == (1, 10), "it is too young"
    assert await world.trim() == (9, 2)
    assert await world.trim() == (9, 2)


async def test_what_the_ledger_lacks_stays_until_it_has_it(world: World, ledger: Ledger) -> None:
    """Rule: a ledger that came back keeps what it needs in the stream; a deleted message needs nothing."""
    await world.jetstream.delete_msg("AGENTESE", 2)
    await world.apply(ledger, 1, 3, 4, 5, 7, 8, 9, 10)
    await world.say_kept(10)
    assert await world.trim() == (6, 5)
    await world.apply(ledger, 6)
    assert await world.trim() == (11, 0)


async def test_what_was_stored_after_backup_spoke_stays(world: World, ledger: Ledger) -> None:
    """Rule: a stream that a restore cut may give a sequence to another message."""
    await world.say_kept(20)
    await world.jetstream.publish("agentese.acme.llm.tokens", body("e11"))
    await world.apply(ledger, *range(1, 12))
    assert await world.trim() == (11, 1)
