"""What this process stored lately, by identity: so that a receipt can tell of a contradiction at once.

It is a courtesy: the ledger tells of every one, for ever, and another process of the door remembers others.
"""

from __future__ import annotations

from collections import OrderedDict
from datetime import UTC, datetime

from kgents_common import envelope
from kgents_common.envelope import Envelope
from kgents_common.errors import EnvelopeError

MAX_BYTES = 4 * 1024 * 1024
# What an entry costs beside the bytes that it holds: measured, with both objects and the table's share.
ENTRY_BYTES = 200
_SEQUENCE_BYTES = 8


class RecentEvents:
    """The last events that the stream acknowledged, up to so many bytes of memory.

    Each is kept as the bytes it was published as and read again where another has its identity: kept as
    objects, a dozen for each, they cost every request of a busy door a tenth, in memory that no cache holds.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self.held_bytes = 0
        # The oldest first: the identity's texts, and the sequence followed by the event.
        self._events: OrderedDict[bytes, bytes] = OrderedDict()

    def contradicts(self, event: Envelope, sequence: int) -> bool:
        """Whether an event that came before under the same identity says something else; remembers this one.

        Args:
            sequence: Where the stream has it: of two, the ledger counts the one that is first there.
        """
        # No attribute holds a line feed.
        identity = f"{event.tenant}\n{event.source}\n{event.id}".encode()
        known = self._events.get(identity)
        if known is not None:
            at = int.from_bytes(known[:_SEQUENCE_BYTES], "big")
            if at <= sequence:
                return at < sequence and not _is_same(known[_SEQUENCE_BYTES:], event)
            del self._events[identity]
            self.held_bytes -= _size(identity, known)
        kept = sequence.to_bytes(_SEQUENCE_BYTES, "big") + event.body
        self._events[identity] = kept
        self.held_bytes += _size(identity, kept)
        while self.held_bytes > self._max_bytes:
            self.held_bytes -= _size(*self._events.popitem(last=False))
        return False


def _size(identity: bytes, kept: bytes) -> int:
    return ENTRY_BYTES + len(identity) + len(kept)


def _is_same(first: bytes, second: Envelope) -> bool:
    try:
        read = envelope.read(first, tenant=second.tenant, now=datetime.now(UTC), as_stored=True)
        return read.payload_hash() == second.payload_hash()
    except (EnvelopeError, ValueError, ArithmeticError, RecursionError):  # the ledger will say what these are
        return True
