"""A billing on a real Postgres, without NATS: the processor and the store, told events one by one."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from kgents_billing.handlers.process import Processor
from kgents_billing.handlers.rounds import Refetch
from kgents_billing.metrics import Metrics
from kgents_billing.model.known import Fetched, Options
from kgents_billing.model.projection import digest, project
from kgents_billing.sinks.store import Committed, Letters, Origin, Store, Subscriptions
from kgents_billing.sinks.stripe_api import Answer, MissingObjectError
from kgents_common import database
from kgents_common.crash import CrashPoints
from kgents_common.telemetry import new_registry

EPOCH = datetime(2026, 11, 1, tzinfo=UTC)


class KnownStripe:
    """Stripe's answers, given by the test; it counts what it is asked."""

    def __init__(self, subscription: Callable[[str], tuple[Mapping[str, Any], int]] | None = None) -> None:
        self._subscription = subscription
        self.customers: dict[str, Mapping[str, Any]] = {}
        self.events: dict[str, bytes] = {}
        self.objects: dict[str, tuple[Mapping[str, Any], int]] = {}
        self.asked: list[str] = []
        self.accounts: list[str | None] = []

    def of(self, account: str | None) -> KnownStripe:
        self.accounts.append(account)
        return self

    async def subscription(self, subscription_id: str) -> Fetched:
        self.asked.append(subscription_id)
        if self._subscription is None:
            raise MissingObjectError("none")
        thing, second = self._subscription(subscription_id)
        return Fetched(project(thing), second)

    async def customer_metadata(self, customer_id: str) -> Mapping[str, Any]:
        self.asked.append(customer_id)
        if customer_id not in self.customers:
            raise MissingObjectError("none")
        return self.customers[customer_id]

    async def event(self, event_id: str) -> bytes:
        self.asked.append(event_id)
        if event_id not in self.events:
            raise MissingObjectError("none")
        return self.events[event_id]

    async def get(self, path: str, params: Mapping[str, Any] | None = None) -> Answer:
        del params
        self.asked.append(path)
        if path not in self.objects:
            raise MissingObjectError("none")
        thing, second = self.objects[path]
        return Answer(thing, "", second)


class ToldBilling:
    """Takes bodies as the stream would bring them."""

    def __init__(self, pool: AsyncConnectionPool[AsyncConnection], stripe: KnownStripe | None) -> None:
        self.pool = pool
        self.store = Store(pool, CrashPoints(None))
        self.letters = Letters(pool)
        self.subscriptions = Subscriptions(pool)
        self.stripe = stripe
        self.processor = Processor(self.store, stripe, options=Options(), metrics=Metrics(new_registry()))
        self._seq = itertools.count(1)

    def origin(self, body: bytes) -> Origin:
        """The next message of the stream."""
        return Origin("events.stripe.test.t.evt", {}, body, EPOCH, next(self._seq), EPOCH, "EVENTS")

    async def take(self, body: bytes, *, again: bool = False) -> Committed:
        """One delivery."""
        return await self.processor.process(self.origin(body), again=again)

    async def refetched(self) -> bool:
        """One round of asking Stripe; whether anything is still marked."""
        stripe: Any = self.stripe
        await Refetch(stripe, self.store, self.subscriptions).run()
        return bool(await self.subscriptions.count_to_refetch())

    async def states(self) -> dict[str, str]:
        """Every subscription's state, by its digest."""
        async with self.pool.connection() as connection:
            rows = await (await connection.execute("select id from billing.subscription")).fetchall()
        found = [await self.subscriptions.get(row[0]) for row in rows]
        return {stored.row.id: digest(stored.row.state) for stored in found if stored is not None}

    async def facts(self) -> dict[str, tuple[str, bytes]]:
        """Every fact: its tenant and its body, by its key."""
        async with self.pool.connection() as connection:
            rows = await (await connection.execute("select key, tenant, body from billing.fact")).fetchall()
        return {key: (tenant, bytes(body)) for key, tenant, body in rows}


@asynccontextmanager
async def told_billing(url: str, stripe: KnownStripe | None = None) -> AsyncIterator[ToldBilling]:
    """A billing on an empty database."""
    await database.migrate(url, package="kgents_billing.schema", schema="billing")
    pool = database.make_pool(url, application="billing-test")
    await pool.open()
    try:
        yield ToldBilling(pool, stripe)
    finally:
        await pool.close()
