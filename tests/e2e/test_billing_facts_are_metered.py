"""Billing's facts become OpenMeter's events, each once; nobody else can make one."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import msgspec
import nats
import psycopg
import pytest
from tests.billing.lives import Life, reference

from kgents_devstack.servers import PostgresServer

from .conftest import System, make_event, publish_directly, run, systems, wait_for
from .stripe_door import ENVIRONMENT, deliver, settle


@pytest.fixture(scope="module")
def system(postgres_server: PostgresServer) -> Iterator[System]:
    """Billing and who meters its facts."""
    with systems(postgres_server) as start:
        yield start(services=("metering", "billing", "api"), environment=ENVIRONMENT)


def types(system: System) -> list[str]:
    """The types of what metering counted."""
    with psycopg.connect(system.stack.database_url) as connection:
        return sorted(row[0] for row in connection.execute("select type from metering.event").fetchall())


def test_each_fact_is_counted_and_delivered_once(system: System) -> None:
    """Rule: a fact is an event of the type `billing.<fact>` in the ledger and at OpenMeter, for ever once."""
    life = Life().wait(5).become("active").wait(5).change_item(quantity=3).wait(5).end()
    deliver(system, [one.body for one in life.told] * 2)
    settle(system, len(life.told))
    wanted = sorted(
        f"billing.test.{msgspec.json.decode(body)['type']}" for _, body in reference(life.told).facts.values()
    )
    assert len(wanted) == 3
    wait_for(lambda: types(system) == wanted, state=lambda: types(system))
    wait_for(lambda: system.stack.openmeter.stats()["unique"] == len(wanted))
    system.stack.service("metering").kill()
    run(_forget_the_consumer(system))
    system.stack.service("metering").start()
    system.post(50)
    wait_for(lambda: system.ledger()["delivered"] == len(wanted) + 50, state=system.ledger)
    assert system.ledger()["accepted"] == len(wanted) + 50
    assert system.stack.openmeter.stats()["unique"] == len(wanted) + 50


async def _forget_the_consumer(system: System) -> None:
    """Every fact is delivered again."""
    client = await nats.connect(system.stack.nats.url)
    await client.jetstream().delete_consumer("EVENTS", "metering-billing-facts")
    await client.close()


def test_an_agent_cannot_send_what_passes_for_a_fact(system: System) -> None:
    """Rule: types that begin with `billing.` are the system's: refused at the door, dead in the stream."""
    counted, dead = types(system), system.ledger()["dead"]
    forged = make_event(type="billing.payment.success", source="/stripe/self", id="pay.ok:in_1")
    answer = httpx.post(
        f"{system.stack.service('api').url}/v1/events",
        json=forged,
        headers={"authorization": f"Bearer {system.stack.keys['acme']}"},
    )
    assert answer.status_code == 400
    assert "billing." in answer.text
    run(publish_directly(system.stack.nats.url, [forged]))
    wait_for(lambda: system.ledger()["dead"] == dead + 1, state=system.ledger)
    assert types(system) == counted
