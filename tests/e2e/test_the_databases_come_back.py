"""The ledger and the billing state are lost: the dump and a redelivery bring back a consistent system."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import nats
import psycopg
from tests.billing.lives import Life

from .conftest import System
from .stripe_door import ENVIRONMENT, check_exact, deliver, settle


def test_dump_loss_load_and_redelivery(make_system: Callable[..., System]) -> None:
    """Rule: what came after the dump comes from the streams again; nothing counts twice (P7)."""
    system = make_system(services=("metering", "billing", "api"), environment=ENVIRONMENT)
    life = Life().wait(5).become("active").wait(5).change_item(quantity=3)
    system.post(300)
    deliver(system, [one.body for one in life.told])
    settle(system, len(life.told))
    system.settle()
    dumped = system.stack.command("backup", "dump")
    assert dumped.returncode == 0, dumped.stderr
    system.post(100)
    life.wait(5).end()
    deliver(system, [life.told[-1].body])
    settle(system, len(life.told))
    system.settle()
    facts = len(life.told) - 1  # the creation, incomplete, tells none

    for name in ("metering", "billing"):
        system.stack.service(name).stop()
    with psycopg.connect(system.stack.database_url, autocommit=True) as connection:
        connection.execute("drop schema metering cascade")
        connection.execute("drop schema billing cascade")
    for name in ("metering", "billing"):  # their migrations make the tables
        system.stack.service(name).start()
        system.stack.service(name).stop()
    loaded = system.stack.command("backup", "load", "--replace")
    assert loaded.returncode == 0, loaded.stderr
    asyncio.run(_forget_consumers(system.stack.nats.url))
    system.stack.apply_streams()
    for name in ("metering", "billing"):
        system.stack.service(name).start()

    settle(system, len(life.told))
    system.settle()
    check_exact(system, life.told)
    assert system.ledger()["accepted"] == 400 + facts
    assert system.tokens_in_ledger() == sum(system.acknowledged.values())
    assert system.stack.openmeter.stats()["unique"] == 400 + facts


async def _forget_consumers(url: str) -> None:
    """Everything is delivered again, from the beginning."""
    client = await nats.connect(url)
    for stream, name in (
        ("AGENTESE", "metering"),
        ("EVENTS", "metering-billing-facts"),
        ("EVENTS", "billing-worker"),
    ):
        await client.jetstream().delete_consumer(stream, name)
    await client.close()
