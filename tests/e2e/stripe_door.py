"""Stripe as the door meets it: lives told by signed webhooks, and what billing made of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import LiteralString

import httpx
import nats
import psycopg
import redis
from nats.js.api import AckPolicy, ConsumerConfig
from psycopg import sql
from tests.billing.lives import Told, reference

from kgents_devstack.stripe import Chaos, Sender

from .conftest import System, wait_for

SECRET = "whsec_for_loopback_only"
SERVICES = ("billing", "api")
ENVIRONMENT = {"api": {"STRIPE_WEBHOOK_SECRETS": SECRET}}


def deliver(system: System, bodies: Iterable[bytes], chaos: Chaos | None = None) -> None:
    """Deliver as Stripe does: again, until it is taken; bounded."""
    Sender(f"{system.stack.service('api').url}/webhooks/stripe", SECRET).deliver(bodies, chaos)


def emptied(system: System, *, is_away: bool = False, **environment: str) -> System:
    """A system as it was before anything happened on it, for a test that follows others.

    Its door goes on. Billing does too, unless it is told something else now, or the test before left it with
    work: what it has in hand would be of that test.

    Args:
        is_away: Billing does not run, until somebody starts it.
        environment: What billing is told beyond the stack's own.
    """
    stack = system.stack
    billing = stack.service("billing")
    wanted = stack.make_service("billing", label="-told", **environment).environment
    stack.nats.start()
    stack.valkey.start()
    if is_away or billing.environment != wanted or not asyncio.run(_has_no_work(system)):
        billing.kill()
    billing.environment = dict(wanted)
    asyncio.run(_purge(stack.nats.url))
    stack.apply_streams()
    with psycopg.connect(stack.database_url) as connection:
        found = connection.execute(
            "select string_agg(format('%I.%I', schemaname, tablename), ', ') from pg_tables"
            " where schemaname = 'billing' and tablename <> 'migration'"
        ).fetchone()
        connection.execute(sql.SQL("truncate {}").format(sql.SQL(found[0] if found else "")))
    redis.Redis.from_url(stack.redis_url).flushall()
    if not is_away:
        billing.start()
    return system


async def _has_no_work(system: System) -> bool:
    client = await nats.connect(system.stack.nats.url)
    try:
        consumer = await client.jetstream().consumer_info("EVENTS", "billing-worker")
    finally:
        await client.close()
    return not (consumer.num_pending or consumer.num_ack_pending or waiting(system) or owed(system))


async def _purge(url: str) -> None:
    client = await nats.connect(url)
    await client.jetstream().purge_stream("EVENTS")
    await client.close()


def listed_since(system: System, second: int) -> None:
    """The next look at Stripe's events begins then. Billing is away: one that runs goes on from its own."""
    assert not system.stack.service("billing").is_running
    with psycopg.connect(system.stack.database_url) as connection:
        connection.execute(
            "insert into billing.cursor (name, second) values ('events', %s)"
            " on conflict (name) do update set second = excluded.second",
            [second],
        )


ENDED = "select (select count(*) from billing.applied) + (select count(*) from billing.quarantine)"
OWED = "select count(*) from billing.fact where published_at is null"


def ended(system: System) -> int:
    """How many events billing brought to an end."""
    return _count(system, ENDED)


def waiting(system: System) -> int:
    """How many events wait for their tenant."""
    return _count(system, "select count(*) from billing.quarantine")


def owed(system: System) -> int:
    """How many facts are not marked as published."""
    return _count(system, OWED)


def _count(system: System, question: LiteralString) -> int:
    with psycopg.connect(system.stack.database_url) as connection:
        row = connection.execute(question).fetchone()
    return row[0] if row else 0


def settle(system: System, events: int) -> None:
    """Until so many distinct events ended and no fact is owed."""
    # One connection for all looks: each is a process of the server, on the cores that do the work.
    with psycopg.connect(system.stack.database_url, autocommit=True) as connection:

        def left() -> tuple[int, int]:
            have, facts = connection.execute(f"select ({ENDED}), ({OWED})").fetchone() or (0, 0)
            return max(0, events - have), facts

        wait_for(lambda: left() == (0, 0), state=lambda: f"events, and facts owed, left: {left()}")


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
