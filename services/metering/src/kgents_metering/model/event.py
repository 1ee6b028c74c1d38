"""What a message of AGENTESE is: an event to count, or a dead letter and why; nothing is stored here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal

import msgspec

from kgents_common import envelope, subjects
from kgents_common.errors import EnvelopeError
from kgents_common.rfc3339 import moment
from kgents_common.stored_message import StoredMessage

# The door allows five minutes ahead of its own clock; the ledger must never refuse what a door with another
# clock acknowledged, and still set aside what is plainly wrong.
MAX_FUTURE = timedelta(days=1)
# A restore that publishes again what came after its snapshot puts the first time into this header.
ORIGINAL_TIME = "Kgents-Original-Time"
# A test clock of Stripe goes ahead as far as somebody turns it.
TEST_CLOCKS = timedelta(days=2_900_000)

_DATA = msgspec.json.Decoder(float_hook=Decimal)


class _Tested(msgspec.Struct):
    livemode: object = None


_TESTED = msgspec.json.Decoder(_Tested)


@dataclass(frozen=True, slots=True)
class Message(StoredMessage):
    """A stored message as the ledger takes it."""

    @property
    def received_at(self) -> datetime:
        """When it was first stored: a restore stores again, and says when that was; never later than
        `stored_at`."""
        text = self.headers.get(ORIGINAL_TIME)
        if text is None:
            return self.stored_at
        try:
            return min(self.stored_at, moment(text))
        except (ValueError, TypeError, OverflowError):  # not ours
            return self.stored_at


@dataclass(frozen=True, slots=True)
class Event:
    """A message that is an event: its key decides whether it counts."""

    message: Message
    key: bytes
    payload_hash: bytes
    tenant: str
    type: str
    source: str
    id: str
    time: datetime
    data: bytes

    def decoded(self) -> object:
        """`data` as Python objects, fractions as Decimal."""
        return _DATA.decode(self.data)


@dataclass(frozen=True, slots=True)
class Dead:
    """A message that cannot be counted."""

    message: Message
    code: str
    detail: str


def classify_fact(message: Message) -> Event | Dead:
    """A fact of billing as an event of the type `billing.<fact>`, or why it is none.

    A fact of Stripe's test mode is `billing.test.<fact>`: no meter of real money counts it. Its time may be
    ahead, as a test clock's is; it counts when it came.

    Its key has a place of its own beside the tenant's: no agent can send what would pass for a fact.
    """
    place = subjects.parse_billing(message.subject)
    if place is None:
        return Dead(message, "foreign_subject", "the subject is not events.billing.<tenant>.<fact>")
    found = _read(message, place, max_future=TEST_CLOCKS)
    if isinstance(found, Dead):
        return found
    is_test = _TESTED.decode(found.data).livemode is False
    if not is_test:
        found = _read(message, place)
        if isinstance(found, Dead):
            return found
    return replace(
        found,
        key=envelope.identity(f"billing/{found.tenant}", found.source, found.id),
        type=f"{envelope.RESERVED_TYPES}{'test.' if is_test else ''}{found.type}",
        time=min(found.time, message.received_at) if is_test else found.time,
    )


def classify(message: Message) -> Event | Dead:
    """An event, or why it is none: `foreign_subject`, `foreign_tenant`, `invalid_event`."""
    place = subjects.parse_agentese(message.subject)
    if place is None:
        return Dead(message, "foreign_subject", "the subject is not agentese.<tenant>.<type>")
    return _read(message, place)


def _read(
    message: Message, place: subjects.AgenteseSubject, *, max_future: timedelta = MAX_FUTURE
) -> Event | Dead:
    try:
        found = envelope.read(
            message.body,
            tenant=place.tenant,
            now=message.received_at,
            max_future=max_future,
            as_stored=True,
        )
        data_hash = found.payload_hash()
    except EnvelopeError as error:
        code = "foreign_tenant" if error.status == 403 else "invalid_event"
        return Dead(message, code, str(error)[:1000])
    except (ValueError, RecursionError, ArithmeticError) as error:
        return Dead(message, "invalid_event", f"data cannot be read: {error}"[:1000])
    if found.type != place.type:
        return Dead(message, "foreign_subject", "the subject's type is not the event's")
    return Event(
        message=message,
        key=found.key,
        payload_hash=data_hash,
        tenant=found.tenant,
        type=found.type,
        source=found.source,
        id=found.id,
        time=found.time,
        data=found.data,
    )
