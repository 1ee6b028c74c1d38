"""What JetStream says of a message it delivers, in the reply subject; nobody else can put it there for us.

Source: ADR-15 of the NATS architecture. `$JS.ACK.<stream>.<consumer>.<delivered>.<stream sequence>.<consumer
sequence>.<time>.<pending>`, or, since a server may know domains, `$JS.ACK.<domain>.<account hash>.` before
the stream and perhaps a token after pending.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from nats.aio.msg import Msg

from kgents_common.connection.client import Message
from kgents_common.stored_message import StoredMessage

_SHORT = 9
_LONG = 11

_M = TypeVar("_M", bound=StoredMessage)


@dataclass(frozen=True, slots=True)
class Delivered:
    """A delivery: which message, to which consumer, for the how-manieth time.

    Attributes:
        sequence: In the stream.
        time: When the server stored it, Unix nanoseconds. With stream and sequence, its identity: a stream
            that is made anew counts from 1 again, and its messages are stored later.
        place: In the consumer, counted from 1 without a hole.
        pending: How many more the consumer had for us then.
    """

    stream: str
    consumer: str
    tries: int
    sequence: int
    place: int
    time: int
    pending: int

    @property
    def stored_at(self) -> datetime:
        """The time to the microsecond, rounded as nats-py does: what was stored by it is found by it."""
        return datetime.fromtimestamp(self.time / 1_000_000_000.0, UTC)


def delivered(message: Msg) -> Delivered | None:
    """How a message was delivered; None where JetStream did not: a status, an answer, another's message."""
    fields = message.reply.split(".")
    if len(fields) == _SHORT:
        place = 2
    elif len(fields) >= _LONG:
        place = 4
    else:
        return None
    if fields[:2] != ["$JS", "ACK"]:
        return None
    stream, consumer, *numbers = fields[place : place + 7]
    if not all(number.isascii() and number.isdigit() for number in numbers):
        return None
    tries, sequence, consumer_sequence, time, pending = map(int, numbers)
    return Delivered(stream, consumer, tries, sequence, consumer_sequence, time, pending)


def stored(message: Msg, place: Delivered, epoch: datetime, kind: type[_M]) -> _M:
    """A delivered message as a value of this kind.

    Args:
        epoch: When its stream was created, as far as known.
    """
    return kind(
        subject=message.subject,
        headers=dict(message.headers or {}),
        body=message.data,
        epoch=epoch,
        seq=place.sequence,
        stored_at=place.stored_at,
        stream=place.stream,
        raw_subject=message.raw_subject if isinstance(message, Message) else b"",
        raw_headers=message.raw_headers if isinstance(message, Message) else b"",
    )
