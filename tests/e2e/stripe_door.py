"""Stripe as the door meets it: lives told by signed webhooks, and what billing made of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import httpx
import nats
import psycopg
from nats.js.api import AckPolicy, ConsumerConfig
from tests.billing.lives import Told, reference

from kgents_devstack.stripe import Chaos, Sender

from .conftest import System, wait_for

SECRET = "whsec_for_loopback_only"
SERVICES = ("billing", "api")
ENVIRONMENT = {"api": {"STRIPE_WEBHOOK_SECRETS": SECRET}}


def deliver(system: System, bodies: Iterable[bytes], chaos: Chaos | None = None) -> None:
    """Deliver as Stripe does: again, until it is taken; bounded."""
    Sender(f"{system.stack.service('api').url}/webhooks/stripe", SECRET).deliver(bodies, chaos)


def ended(system: System) -> int:
    """How many events billing brought to an end."""
    with psycopg.connect(system.stack.database_url) as connection:
        row = connection.execute(
            "select (select count(*) from billing.applied) + (select count(*) from billing.quarantine)"
        ).fetchone()
    return row[0] if row else 0


def waiting(system: System) -> int:
    """How many events wait for their tenant."""
    with psycopg.connect(system.stack.database_url) as connection:
        row = connection.execute("select count(*) from billing.quarantine").fetchone()
    return row[0] if row else 0


def owed(system: System) -> int:
    """How many facts are not marked as published."""
    with psycopg.connect(system.stack.database_url) as connection:
        row = connection.execute("select count(*) from billing.fact where published_at is null").fetchone()
    return row[0] if row else 0


def settle(system: System, events: int) -> None:
    """Until so many distinct events ended and no fact is owed."""
    wait_for(
        lambda: ended(system) >= events and owed(system) == 0,
        state=lambda: f"{ended(system)} of {events} events, {owed(system)} facts owed",
    )


def told(system: System) -> list[tuple[str, bytes]]:
    """Every fact on the bus, in its order: subject and body."""

    async def read() -> list[tuple[str, bytes]]:
        client = await nats.connect(system.stack.nats.url)
        try:
            subscription = await client.jetstream().pull_subscribe(
                "events.billing.>", stream="EVENTS", config=ConsumerConfig(ack_policy=AckPolicy.NONE)
            )
            left = (await subscription.consumer_info()).num_pending or 0
            found: list[tuple[str, bytes]] = []
            while len(found) < left:
                found += [(m.subject, m.data) for m in await subscription.fetch(500, timeout=5)]
            return found
        finally:
            await client.close()

    return asyncio.run(read())


def check_exact(system: System, *lives: Iterable[Told], looked_up: str | None = None) -> None:
    """The bus holds exactly the facts of these lives, each once.

    Args:
        looked_up: Whose Stripe says a charge is, where events do not.
    """
    wanted: list[tuple[str, bytes]] = []
    for life in lives:
        for tenant, body in reference(life, looked_up=looked_up).facts.values():
            kind = httpx.Response(200, content=body).json()["type"]
            wanted.append((f"events.billing.{tenant}.{kind}", body))
    assert sorted(told(system)) == sorted(wanted)
