"""What a caller gets for an event that is durable, and the port through which events become so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import msgspec
from msgspec import UNSET, UnsetType

from kgents_common.envelope import Envelope
from kgents_common.errors import NotDurableError


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """The proof for one event: where it is stored, and whether it was there before.

    Attributes:
        stored: `stream`, or `spool`: synced on the door's own disk, to be published when the stream takes it.
        duplicate: It was there already, as far as the place where it is stored remembers.
        conflict: Another event came before under its source and id and says something else: this one is kept,
            and will not count. Absent where the door does not know of one; the ledger does, always.
        stream: Where it is in the stream; absent for an event in the spool.
    """

    id: str
    source: str
    duplicate: bool
    conflict: Literal[True] | UnsetType = UNSET
    stored: Literal["stream", "spool"] = "stream"
    stream: str | UnsetType = UNSET
    stream_sequence: int | UnsetType = UNSET


class WrongField(msgspec.Struct, frozen=True):
    """One field of a refused event, and the rule that it breaks."""

    field: str
    rule: str


class RefusedEvent(msgspec.Struct, frozen=True):
    """An event of a batch that was refused by itself, where the caller asked for that.

    Attributes:
        index: Its place in the batch, from 0.
        status: What a request of this event alone would be answered.
    """

    index: int
    status: int
    invalid_parameters: list[WrongField]


class Receipts(msgspec.Struct, frozen=True):
    """The body of a 202: a receipt for each event that was taken, in the request's order.

    Attributes:
        refused: Present where the caller asked for events to be refused one by one.
    """

    receipts: list[Receipt]
    refused: list[RefusedEvent] | UnsetType = UNSET


@dataclass(frozen=True, slots=True)
class Failure:
    """An event of a batch that is not durable."""

    index: int
    reason: str


class PartlyStoredError(NotDurableError):
    """Some events of a request are durable and some are not; sending all of it again is safe."""

    def __init__(self, failures: Sequence[Failure], total: int) -> None:
        super().__init__(f"{len(failures)} of {total} events are not durable: {failures[0].reason}")
        self.failures = tuple(failures)
        self.total = total


class EventSink(Protocol):
    """Where accepted events go."""

    async def publish(self, events: Sequence[Envelope], headers: Mapping[str, str]) -> list[Receipt]:
        """Make every event durable; when it returns, each one is.

        Raises:
            PartlyStoredError: Not every event is durable.
            PermanentError: An event is larger than the stream takes.
        """
