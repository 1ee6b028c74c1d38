"""Slow work: events nobody delivered, subscriptions only Stripe can tell, what waits and what is dead."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import msgspec
import structlog
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from kgents_billing.handlers.process import Processor
from kgents_billing.metrics import Metrics
from kgents_billing.model.decision import Outcome
from kgents_billing.model.event_map import is_known
from kgents_billing.model.projection import UnreadableObjectError, digest, project
from kgents_billing.model.subscription import observe_object
from kgents_billing.model.tenant import KEY
from kgents_billing.sinks.bus import Bus
from kgents_billing.sinks.store import Letters, Origin, OvertakenError, Store, Subscriptions
from kgents_billing.sinks.store.cursors import Cursors
from kgents_billing.sinks.store.letters import PATIENCE
from kgents_billing.sinks.store.subscriptions import Stored
from kgents_billing.sinks.stripe_api import MissingObjectError, StripeApi
from kgents_common import stripe_events, subjects
from kgents_common.clock import Clock
from kgents_common.database import transient_errors
from kgents_common.errors import PermanentError, TransientError
from kgents_common.stripe_events import NotStripeEventError

# Stripe lists an event some time after its `created`; what the last look missed, this one sees.
OVERLAP = timedelta(minutes=15)
SOURCE = "/stripe/self"
REFETCH_BATCH = 20
QUARANTINE_BATCH = 50

Pool = AsyncConnectionPool[AsyncConnection]
_log = structlog.get_logger()


@asynccontextmanager
async def leadership(pool: Pool, name: str) -> AsyncIterator[bool]:
    """Whether this process is the one that does `name` now; the lock ends with its connection."""
    with transient_errors():
        async with pool.connection() as connection:
            await connection.set_autocommit(True)
            key = f"kgents.billing.{name}"
            row = await (
                await connection.execute("select pg_try_advisory_lock(hashtextextended(%s, 0))", [key])
            ).fetchone()
            is_leader = bool(row and row[0])
            try:
                yield is_leader
            finally:
                if is_leader and not connection.closed:
                    await connection.execute("select pg_advisory_unlock(hashtextextended(%s, 0))", [key])
                await connection.set_autocommit(False)


class Poll:
    """Stripe's list of events, compared with EVENTS: what no webhook brought is appended as if one had."""

    def __init__(
        self,
        stripe: StripeApi,
        bus: Bus,
        cursors: Cursors,
        *,
        first_days: int,
        metrics: Metrics,
        clock: Clock,
    ) -> None:
        self._stripe = stripe
        self._bus = bus
        self._cursors = cursors
        self._first = timedelta(days=first_days)
        self._metrics = metrics
        self._clock = clock

    async def run(self, since: int | None = None) -> int:
        """Look once, from the cursor (or the second `since`) less an overlap; how many events were missing.

        The cursor moves only after every page was taken, and only where the look began at it: a later
        beginning would leave a hole.

        Raises:
            TransientError: Stripe or NATS does not answer; what was appended stays.
        """
        start = since if since is not None else await self._start()
        recovered, reached = 0, 0
        async for page in self._stripe.pages("/v1/events", {"created": {"gte": start}}):
            reached = reached or page.second
            for raw in page.items:
                recovered += await self._append(raw)
        if since is None:
            await self._cursors.advance("events", reached)
            self._metrics.polled_at.set(reached)
        if recovered:
            self._metrics.recovered.inc(recovered)
            _log.warning("poll.recovered", events=recovered, hint="is the endpoint at Stripe all right?")
        return recovered

    async def count(self, since: int | None = None) -> int:
        """How many events `run` would offer. Errors as there."""
        start = since if since is not None else await self._start()
        found = 0
        async for page in self._stripe.pages("/v1/events", {"created": {"gte": start}}):
            found += len(page.items)
        return found

    async def _start(self) -> int:
        cursor = await self._cursors.get("events")
        if cursor is None:
            return int((self._clock.now() - self._first).timestamp())
        return cursor - int(OVERLAP.total_seconds())

    async def _append(self, raw: bytes) -> bool:
        try:
            event = stripe_events.read(raw)
        except NotStripeEventError as error:
            _log.error("poll.unreadable", error=str(error))
            return False
        if not is_known(event.type):
            return False
        return await self._bus.append(event, raw, received_at=self._clock.now())


class Survey:
    """Every subscription at Stripe, compared with its row: heals what no event ever told.

    A difference is believed only if it is still there after another look at the events: else the event that
    tells it is on its way, and would tell it again.
    """

    def __init__(
        self, stripe: StripeApi, store: Store, subscriptions: Subscriptions, poll: Poll, metrics: Metrics
    ) -> None:
        self._stripe = stripe
        self._store = store
        self._subscriptions = subscriptions
        self._poll = poll
        self._metrics = metrics

    async def run(self) -> int:
        """Look once; how many rows were healed.

        Raises:
            TransientError: Stripe or Postgres does not answer; what was healed stays.
        """
        suspects: list[str] = []
        async for page in self._stripe.pages("/v1/subscriptions", {"status": "all"}):
            for raw in page.items:
                thing = msgspec.json.decode(raw)
                if await self._differs(thing):
                    suspects.append(thing["id"])
        if not suspects:
            return 0
        if await self._poll.run():
            raise TransientError("survey: events were missing; look again once they are processed")
        healed = 0
        for name in suspects:
            healed += await self._heal(name)
        return healed

    async def _differs(self, thing: Mapping[str, Any]) -> bool:
        try:
            state = project(thing)
        except UnreadableObjectError as error:
            _log.error("survey.unreadable", error=str(error))
            return False
        stored = await self._subscriptions.get(str(thing.get("id")))
        return stored is None or digest(stored.row.state) != digest(state)

    async def _heal(self, name: str) -> bool:
        answer = await self._stripe.get(f"/v1/subscriptions/{name}")
        if not await self._differs(answer.data):
            return False
        stored = await self._subscriptions.get(name)
        metadata = answer.data.get("metadata")
        named = metadata.get(KEY) if isinstance(metadata, Mapping) else None
        tenant = named if isinstance(named, str) and subjects.is_tenant(named) else None
        if tenant is None and stored is not None:
            tenant = stored.row.tenant
        if tenant is None:
            _log.warning("survey.unmapped", subscription=name)
            return False
        made = observe_object(
            stored.row if stored else None,
            name,
            tenant,
            project(answer.data),
            second=answer.second,
            source=SOURCE,
            via="reconcile",
        )
        self._metrics.drift.inc()
        _log.warning("survey.healed", subscription=name)
        await self._store.observe(made.row, made.facts, livemode=answer.data.get("livemode") is True)
        return True


class Refetch:
    """Subscriptions whose events do not tell their last state: asked for, a few at a time."""

    def __init__(self, stripe: StripeApi, store: Store, subscriptions: Subscriptions) -> None:
        self._stripe = stripe
        self._store = store
        self._subscriptions = subscriptions

    async def run(self) -> bool:
        """One batch; whether there may be more.

        Raises:
            TransientError: Stripe or Postgres does not answer.
        """
        found = await self._subscriptions.to_refetch(REFETCH_BATCH)
        for stored in found:
            await self._one(stored)
        return len(found) == REFETCH_BATCH

    async def _one(self, stored: Stored) -> None:
        row = stored.row
        try:
            seen = await self._stripe.subscription(row.id)
        except MissingObjectError:
            _log.error("refetch.gone", subscription=row.id)
            await self._give_up(stored)
            return
        made = observe_object(
            row, row.id, row.tenant, seen.state, second=seen.second, source=SOURCE, tells_change=False
        )
        try:
            new = msgspec.structs.replace(made.row, needs_refetch=False)
            await self._store.observe(new, made.facts, livemode=stored.livemode)
        except OvertakenError:
            return  # an event came meanwhile; if it did not tell, the next round asks again

    async def _give_up(self, stored: Stored) -> None:
        """Stripe has no such subscription: what is known of it is all there is."""
        row = msgspec.structs.replace(stored.row, needs_refetch=False)
        try:
            await self._store.observe(row, (), livemode=stored.livemode)
        except OvertakenError:
            return


class Quarantine:
    """Events without a tenant, tried again until one is known or a day has passed."""

    def __init__(self, letters: Letters, processor: Processor, clock: Clock) -> None:
        self._letters = letters
        self._processor = processor
        self._clock = clock

    async def run(self) -> bool:
        """One batch; whether there may be more.

        Raises:
            TransientError: Postgres or Stripe does not answer.
        """
        found = await self._letters.due(QUARANTINE_BATCH)
        for waiting in found:
            origin = Origin(waiting.subject, bytes(waiting.body), waiting.epoch, waiting.seq)
            try:
                committed = await self._processor.process(origin)
            except PermanentError as error:
                await self._letters.give_up(waiting, str(error))
                continue
            is_late = self._clock.now() - waiting.first_at > PATIENCE
            if committed.outcome is Outcome.QUARANTINED and is_late:
                await self._letters.give_up(waiting, "no tenant was found for it within a day")
                _log.error("quarantine.given_up", event_id=waiting.event_id, reason=waiting.reason)
        return len(found) == QUARANTINE_BATCH


async def mirror(letters: Letters, bus: Bus) -> bool:
    """Tell the bus of new dead letters; whether there may be more.

    Raises:
        TransientError: Postgres or NATS does not answer.
    """
    found = await letters.to_mirror()
    for letter in found:
        await bus.announce_dead(letter)
    if found:
        await letters.mirrored([letter.id for letter in found])
    return bool(found)
