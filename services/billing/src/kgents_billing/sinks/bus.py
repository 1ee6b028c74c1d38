"""EVENTS as billing writes to it: facts and polled Stripe events; each is there once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime

from kgents_billing.sinks.store import Owed
from kgents_common import streams, stripe_events, subjects
from kgents_common.connection import Connection
from kgents_common.errors import KgentsError
from kgents_common.publisher import CLOCK_SKEW, SURELY_REMEMBERED, AlreadyThereError, Publisher, stored_ids
from kgents_common.stripe_events import StripeEnvelope


class Bus:
    """Publishes to EVENTS."""

    def __init__(self, connection: Connection, publisher: Publisher) -> None:
        self._connection = connection
        self._publisher = publisher

    async def publish_facts(self, owed: Sequence[Owed]) -> list[int]:
        """Publish facts; the numbers of those that are stored, now or before.

        A fact that may have been published longer ago than JetStream remembers is looked for first.

        Raises:
            TransientError: It could not be looked.
        """
        old = [fact for fact in owed if fact.age_seconds > SURELY_REMEMBERED.total_seconds()]
        there: dict[str, int] = {}
        if old:
            there = await stored_ids(
                self._connection,
                stream=subjects.EVENTS,
                subject="events.billing.>",
                since=min(fact.made_at for fact in old) - CLOCK_SKEW,
                wanted=[fact.key for fact in old],
            )
        missing = [fact for fact in owed if fact.key not in there]
        answers = await asyncio.gather(*(self._publish(fact) for fact in missing))
        return [fact.n for fact in owed if fact.key in there] + [n for n in answers if n is not None]

    async def is_caught_up(self) -> bool:
        """Whether every Stripe event that is stored now is handled.

        Raises:
            KgentsError: JetStream does not say.
        """
        spec = streams.BILLING
        info = await streams.request(self._connection.client, f"CONSUMER.INFO.{spec.stream}.{spec.name}")
        return int(info["num_pending"]) + int(info["num_ack_pending"]) == 0

    async def append(self, event: StripeEnvelope, body: bytes, *, received_at: datetime) -> bool:
        """Store a polled Stripe event as the door does; whether it was missing.

        Raises:
            NotDurableError: It is not stored.
        """
        made = stripe_events.append(event, body, received_at=received_at, via="poll")
        try:
            await self._publisher.publish(
                made.subject, made.body, message_id=made.message_id, headers=made.headers
            )
        except AlreadyThereError:
            return False
        return True

    async def _publish(self, fact: Owed) -> int | None:
        headers = {"content-type": "application/cloudevents+json; charset=utf-8"}
        if fact.traceparent:
            headers["traceparent"] = fact.traceparent
        try:
            await self._publisher.publish(fact.subject, fact.body, message_id=fact.key, headers=headers)
        except KgentsError:
            return None  # it stays owed
        return fact.n
