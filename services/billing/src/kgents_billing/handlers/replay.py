"""Handling stored events again: read from EVENTS, by id, type and time; facts are told once all the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from nats.errors import Error as NatsError
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import Error as JetStreamError

from kgents_billing.sinks.store import Committed, Origin
from kgents_common import streams, subjects
from kgents_common.clock import moment
from kgents_common.connection import Connection
from kgents_common.errors import PermanentError, TransientError

BATCH = 200
FETCH_SECONDS = 5.0
FORGOTTEN_AFTER_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which events to handle again; empty sets and None want all.

    Attributes:
        types: As Stripe writes them, dotted.
        since, until: When they were stored.
    """

    ids: frozenset[str] = frozenset()
    types: frozenset[str] = frozenset()
    since: datetime | None = None
    until: datetime | None = None
    limit: int | None = None

    def has(self, subject: str, stored_at: datetime) -> bool:
        """Whether it is one of them."""
        tokens = subject.split(".")
        names = {subjects.token(name.replace(".", "_")) for name in self.types}
        return (
            (not self.ids or tokens[-1] in self.ids)
            and (not names or tokens[-2] in names)
            and (self.until is None or stored_at <= self.until)
        )


class Processes(Protocol):
    """The processor, as a replay needs it."""

    async def process(self, origin: Origin, *, again: bool) -> Committed:
        """Bring one event to its end."""


async def stored_events(connection: Connection, wanted: Wanted) -> AsyncIterator[Origin]:
    """The wanted events that EVENTS holds now, in its order.

    Raises:
        TransientError: JetStream does not answer.
    """
    try:
        info = await streams.request(connection.client, f"STREAM.INFO.{subjects.EVENTS}")
        subscription = await connection.jetstream().pull_subscribe(
            "events.stripe.>",
            stream=subjects.EVENTS,
            config=ConsumerConfig(
                deliver_policy=DeliverPolicy.BY_START_TIME if wanted.since else DeliverPolicy.ALL,
                opt_start_time=wanted.since,
                ack_policy=AckPolicy.NONE,
                inactive_threshold=FORGOTTEN_AFTER_SECONDS,
                mem_storage=True,
                num_replicas=1,
            ),
        )
        left = (await subscription.consumer_info()).num_pending or 0
        while left > 0:
            messages = await subscription.fetch(min(left, BATCH), timeout=FETCH_SECONDS)
            left -= len(messages)
            for message in messages:
                metadata = message.metadata
                if wanted.has(message.subject, metadata.timestamp):
                    yield Origin(
                        message.subject, message.data, moment(info["created"]), metadata.sequence.stream
                    )
        await subscription.unsubscribe()
    except (NatsError, JetStreamError, OSError, TimeoutError) as error:
        raise TransientError(f"jetstream: {type(error).__name__} while reading events") from error


async def replay(processor: Processes, origins: Iterable[Origin], *, again: bool) -> Counter[str]:
    """Handle events again, one after the other; how many ended how.

    Raises:
        TransientError: Postgres is away; what was handled is.
    """
    outcomes: Counter[str] = Counter()
    for origin in origins:
        try:
            committed = await processor.process(origin, again=again)
        except PermanentError as error:
            outcomes[f"not handled: {error}"] += 1
        else:
            outcomes[committed.outcome.value] += 1
            outcomes["new facts"] += committed.facts
    return outcomes
