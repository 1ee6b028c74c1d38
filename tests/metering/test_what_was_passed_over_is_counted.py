"""Upgraded from the consumer of the version before: what it passed over is found, and counted once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Collection
from dataclasses import replace
from datetime import datetime

import nats
import pytest
from nats.aio.client import Client
from nats.errors import TimeoutError as NothingCame
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from kgents_common import streams
from kgents_common.rfc3339 import moment
from kgents_devstack.fixtures import remove_streams
from kgents_devstack.raw_nats import RawPublisher
from kgents_devstack.servers import NatsServer
from kgents_devstack.waiting import reached
from kgents_metering.handlers.positions import Positions
from kgents_metering.model.event import Event, Message, classify
from kgents_metering.sinks.ledger.apply import Ledger

from .messages import body

Pool = AsyncConnectionPool[AsyncConnection]
SMALL = streams.scaled(streams.STREAMS, 64 * 1024**2)
BEFORE = replace(streams.METERING, filter_subject="agentese.>")
# No index of a server's holds the subject (ADR 80). That a filter passes over it takes a long stream to be
# met, so the worker of before leaves it out, and with it what 2.10 passed over behind it.
UNINDEXED = b"agentese.acme.\x7f"
PASSED_OVER = {3, 4, 5}


@pytest.fixture
async def client(each_nats_server: NatsServer) -> AsyncIterator[Client]:
    """A client of a server of each version, with the streams and the consumer of the version before."""
    client = await nats.connect(each_nats_server.url)
    await remove_streams(client)
    consumers = (BEFORE, streams.METERING_BILLING_FACTS)
    await streams.apply(client, await streams.plan(client, streams=SMALL, consumers=consumers))
    yield client
    await client.close()


class Worker:
    """Applies what the consumer `metering` brings, but for what it leaves out."""

    def __init__(
        self, client: Client, ledger: Ledger, epoch: datetime, leaves_out: Collection[int] = ()
    ) -> None:
        self._client = client
        self._ledger = ledger
        self._epoch = epoch
        self._leaves_out = leaves_out
        self.brought: list[int] = []

    async def until(self, last: int) -> None:
        """Until it was brought the message at this sequence; a fetch that brings nothing is asked again."""
        pull = await self._client.jetstream().pull_subscribe_bind("metering", "AGENTESE")

        async def has_it() -> bool:
            try:
                messages = await pull.fetch(2, timeout=1)
            except NothingCame:
                return False
            found = [
                classify(
                    Message(
                        m.subject,
                        m.headers or {},
                        m.data,
                        self._epoch,
                        m.metadata.sequence.stream,
                        m.metadata.timestamp,
                        "AGENTESE",
                    )
                )
                for m in messages
                if m.metadata.sequence.stream not in self._leaves_out
            ]
            dead = [one for one in found if not isinstance(one, Event)]
            await self._ledger.apply([one for one in found if isinstance(one, Event)], dead)
            for message in messages:
                self.brought.append(message.metadata.sequence.stream)
                await message.ack_sync()
            return last in self.brought

        await reached(has_it, state=lambda: self.brought)
        await pull.unsubscribe()


async def test_after_the_upgrade_what_was_passed_over_is_counted_and_nothing_twice(
    client: Client, each_nats_server: NatsServer, ledger: Ledger, pool: Pool, database_url: str
) -> None:
    """Rule: `streams apply`, then `kgents-metering redeliver`: each event once, what is none buried."""

    def redeliver() -> str:
        environment = {
            **os.environ,
            "NATS_SERVERS": each_nats_server.url,
            "DATABASE_URL": database_url,
            "KGENTS_METERING_ROLE": "writer",
            "KGENTS_METERS_FILE": os.devnull,
        }
        command = [sys.executable, "-m", "kgents_metering", "redeliver"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()[0]

    jetstream = client.jetstream()
    info = await streams.request(client, "STREAM.INFO.AGENTESE")
    for number in (1, 2):
        await jetstream.publish("agentese.acme.llm.tokens", body(f"e{number}"))
    async with RawPublisher(each_nats_server.url) as raw:
        raw.publish(UNINDEXED, body("passed over"))
        await raw.settle()
    for number in range(4, 10):
        await jetstream.publish("agentese.acme.llm.tokens", body(f"e{number}"))
    before = Worker(client, ledger, moment(info["created"]), PASSED_OVER)
    await before.until(9)

    await streams.ensure(client, streams=SMALL)
    found = await Positions(pool, client).behind(streams.METERING)
    assert found is not None
    assert found.floor == 9
    assert "delivered again from sequence 3" in redeliver()

    await jetstream.publish("agentese.acme.llm.tokens", body("e10"))
    after = Worker(client, ledger, moment(info["created"]))
    await after.until(10)
    assert after.brought == [3, 4, 5, 6, 7, 8, 9, 10]
    assert await Positions(pool, client).behind(streams.METERING) is None
    async with pool.connection() as connection:
        counted = await connection.execute("select ce_id from metering.event order by seq")
        assert [row[0] for row in await counted.fetchall()] == [f"e{n}" for n in (1, 2, *range(4, 11))]
        rolled_up = await connection.execute(
            "select sum(r.sum) from metering.rollup r"
            " join metering.meter m on m.id = r.meter where m.slug = 'tokens'"
        )
        assert await rolled_up.fetchone() == (90,)
        ended = await connection.execute(
            "select (select array_agg(seq) from metering.dead), (select count(*) from metering.duplicate),"
            " (select count(*) from metering.conflict), (select count(*) from metering.outbox)"
        )
        assert await ended.fetchone() == ([3], 0, 0, 9)
