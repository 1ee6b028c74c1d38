"""Handling events again, from EVENTS or the dead letters, chosen by what they say and whose they are.

Facts are told once all the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from nats.errors import Error as NatsError

from kgents_billing.handlers.defects import code_of, detail_of
from kgents_billing.model import event as events
from kgents_billing.model.decision import Outcome
from kgents_billing.model.event import MalformedEventError
from kgents_billing.model.tenant import Hints, Owner, hints
from kgents_billing.sinks.store import Committed, DeadLetter, Letters, Origin, origin_of
from kgents_common import streams, subjects
from kgents_common.connection import Connection
from kgents_common.errors import PermanentError, TransientError
from kgents_common.pull import Forward, stored
from kgents_common.rfc3339 import moment
from kgents_common.stored_message import StoredMessage
from kgents_common.streams import JetStreamApiError

BATCH = 100
# Between two fetches a batch is handled, and each of its events may ask Stripe.
FORGOTTEN_AFTER = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which events to handle again; empty sets and None want all.

    Attributes:
        types: As Stripe writes them, dotted.
        since, until: When they were stored, set aside, or made, as their source counts.
        customers, tenants: Whose they are.
    """

    ids: frozenset[str] = frozenset()
    types: frozenset[str] = frozenset()
    customers: frozenset[str] = frozenset()
    tenants: frozenset[str] = frozenset()
    since: datetime | None = None
    until: datetime | None = None

    def fits(self, event_id: str, event_type: str, at: datetime) -> bool:
        """Whether it is one of them, its owner aside. A type's dots may be underscores, as in a subject."""
        names = {subjects.token(name.replace(".", "_")) for name in self.types}
        return (
            (not self.ids or event_id in self.ids)
            and (not names or event_type.replace(".", "_") in names)
            and (self.since is None or at >= self.since)
            and (self.until is None or at <= self.until)
        )


@dataclass(frozen=True, slots=True)
class Chosen:
    """An event to handle again, and how an operator is told of it.

    Attributes:
        letter: The dead letter it comes from; None from the stream.
    """

    origin: Origin
    label: str
    letter: DeadLetter | None = None


class KnowsOwners(Protocol):
    """What is known of whose events are."""

    async def of(self, said: Hints) -> Owner:
        """Whose the event is that says this."""


class Choice:
    """Leaves what is not wanted.

    Attributes:
        unknown: How many were left because nobody knows whose they are (yet).
    """

    def __init__(self, wanted: Wanted, owners: KnowsOwners) -> None:
        self.wanted = wanted
        self.unknown = 0
        self._owners = owners

    async def of(self, found: AsyncIterator[Chosen]) -> AsyncIterator[Chosen]:
        """The wanted ones, in their order."""
        async for one in found:
            if await self.takes(one.origin.body):
                yield one

    async def takes(self, body: bytes) -> bool:
        """Whether the event is a wanted owner's.

        Raises:
            TransientError: Postgres is away.
        """
        customers, tenants = self.wanted.customers, self.wanted.tenants
        if not customers and not tenants:
            return True
        try:
            owner = await self._owners.of(hints(events.read(body)))
        except MalformedEventError:
            owner = Owner()
        if (customers and owner.customer is None) or (tenants and owner.tenant is None):
            self.unknown += 1
            return False
        return (not customers or owner.customer in customers) and (not tenants or owner.tenant in tenants)


async def stored_events(connection: Connection, wanted: Wanted) -> AsyncIterator[Chosen]:
    """The wanted events that EVENTS holds now, in its order.

    Raises:
        TransientError: JetStream does not answer.
    """
    try:
        client = connection.client
        info = await streams.request(client, f"STREAM.INFO.{subjects.EVENTS}")
        epoch, last = moment(info["created"]), info["state"]["last_seq"]
        forward = await Forward.opened(
            client,
            subjects.EVENTS,
            start=wanted.since or 1,
            filter_subject="events.stripe.>",
            description="Billing handles events again",
            inactive=FORGOTTEN_AFTER,
        )
        try:
            seq = 0
            while seq < last and not forward.is_at_end:
                for message, place in await forward.batch(limit=BATCH, wait=None):
                    seq, tokens = place.sequence, message.subject.split(".")
                    if seq <= last and wanted.fits(tokens[-1], tokens[-2], place.stored_at):
                        origin = origin_of(stored(message, place, epoch, StoredMessage))
                        yield Chosen(origin, f"seq {seq:<10} {message.subject}")
                if forward.is_lost:
                    raise TransientError("jetstream: the consumer was lost while reading events")
        finally:
            await forward.close()
    except (NatsError, OSError, TimeoutError, JetStreamApiError) as error:
        raise TransientError(f"jetstream: {type(error).__name__} while reading events") from error


async def open_letters(letters: Letters, wanted: Wanted) -> AsyncIterator[Chosen]:
    """The wanted dead letters that are open, in the order they came.

    Raises:
        TransientError: Postgres is away.
    """
    after = 0
    while found := await letters.find(after=after, limit=BATCH):
        for letter in found:
            if wanted.fits(letter.event_id or "", letter.type, letter.at):
                origin = origin_of(letter.message())
                label = f"letter {letter.id:<8} {letter.code:18}  {letter.type}  {letter.event_id or '-'}"
                yield Chosen(origin, label, letter)
        after = found[-1].id


class Processes(Protocol):
    """The processor, as a replay needs it."""

    async def process(self, origin: Origin, *, again: bool) -> Committed:
        """Bring one event to its end."""


async def replay_letter(
    processor: Processes, letters: Letters, letter: DeadLetter, body: bytes | None = None
) -> Committed:
    """Handle an open dead letter again, as it was or mended, and settle it.

    Raises:
        PermanentError: It cannot be handled, or would be a dead letter again; it stays open.
        TransientError: Nothing is settled.
    """
    origin = origin_of(letter.message(body))
    try:
        committed = await processor.process(origin, again=True)
    except PermanentError as error:
        if body is None:
            await letters.fails_by(letter.id, code_of(error), detail_of(error))
        raise
    if committed.outcome is Outcome.DEAD:
        raise PermanentError(
            f"it stays a dead letter: {letter.code}", hint="mend what it tells of, then discard it"
        )
    await letters.settle(letter.id, state="replayed")
    return committed


async def replay(
    chosen: AsyncIterator[Chosen], handle: Callable[[Chosen], Awaitable[Committed]]
) -> Counter[str]:
    """Handle events again, one after the other; how many ended how.

    Raises:
        TransientError: Postgres is away; what was handled is.
    """
    outcomes: Counter[str] = Counter()
    async for one in chosen:
        try:
            committed = await handle(one)
        except PermanentError as error:
            outcomes[f"not handled: {error}"] += 1
        except TransientError:
            raise
        except Exception as error:  # a defect with one of them must not end the replay
            outcomes[f"failed: {type(error).__name__}"] += 1
        else:
            outcomes[committed.outcome.value] += 1
            outcomes["new facts"] += committed.facts
    return outcomes
