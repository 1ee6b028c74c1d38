"""Stripe as the door meets it: lives told by signed webhooks, and what billing made of them."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import httpx
import nats
import psycopg
from nats.js.api import AckPolicy, ConsumerConfig
from tests.billing.lives import Told, reference

from .conftest import System, wait_for

SECRET = "whsec_for_loopback_only"
SERVICES = ("billing", "api")
ENVIRONMENT = {"api": {"STRIPE_WEBHOOK_SECRETS": SECRET}}


def signed(body: bytes, secret: str = SECRET) -> dict[str, str]:
    """The headers of a webhook."""
    now = str(int(time.time()))
    mac = hmac.new(secret.encode(), now.encode() + b"." + body, hashlib.sha256).hexdigest()
    return {"stripe-signature": f"t={now},v1={mac}", "content-type": "application/json"}


def deliver(system: System, bodies: Iterable[bytes], *, at_once: int = 8) -> None:
    """Deliver as Stripe does: again, until it is answered 200; bounded."""

    def one(body: bytes) -> None:
        for attempt in range(100):
            try:
                answer = client.post("/webhooks/stripe", content=body, headers=signed(body))
                if answer.status_code == 200:
                    return
                assert answer.status_code == 503, answer.text
            except httpx.TransportError:
                pass
            time.sleep(min(1.0, 0.1 * (attempt + 1)))
        raise AssertionError("a webhook was never taken")

    url = system.stack.service("api").url
    with httpx.Client(base_url=url, timeout=10) as client, ThreadPoolExecutor(at_once) as pool:
        list(pool.map(one, bodies))


def ended(system: System) -> int:
    """How many events billing brought to an end."""
    with psycopg.connect(system.stack.database_url) as connection:
        row = connection.execute(
            "select (select count(*) from billing.applied) + (select count(*) from billing.quarantine)"
        ).fetchone()
    return row[0] if row else 0


def owed(system: System) -> int:
    """How many facts are not marked as published."""
    with psycopg.connect(system.stack.database_url) as connection:
        row = connection.execute("select count(*) from billing.fact where published_at is null").fetchone()
    return row[0] if row else 0


def settle(system: System, events: int, timeout_seconds: float = 90) -> None:
    """Until so many distinct events ended and no fact is owed."""
    wait_for(
        lambda: ended(system) >= events and owed(system) == 0,
        timeout_seconds,
        lambda: f"{ended(system)} of {events} events, {owed(system)} facts owed",
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


def check_exact(system: System, *lives: Iterable[Told]) -> None:
    """The bus holds exactly the facts of these lives, each once."""
    wanted: list[tuple[str, bytes]] = []
    for life in lives:
        for tenant, body in reference(life).facts.values():
            kind = httpx.Response(200, content=body).json()["type"]
            wanted.append((f"events.billing.{tenant}.{kind}", body))
    assert sorted(told(system)) == sorted(wanted)
