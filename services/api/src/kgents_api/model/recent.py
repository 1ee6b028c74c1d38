"""What this process stored lately, by identity: so that a receipt can tell of a contradiction at once.

It is a courtesy: the ledger tells of every one, for ever, and another process of the door remembers others.
"""

from __future__ import annotations

from collections import OrderedDict

from kgents_common.envelope import Envelope

MAX_BYTES = 8 * 1024 * 1024
# What an entry costs beside its event's texts: measured, with the tuple, the strings and the table's share.
ENTRY_BYTES = 1000


class RecentEvents:
    """The last events that the stream acknowledged, up to so many bytes of memory."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self.held_bytes = 0
        # The oldest first: event, sequence, bytes.
        self._events: OrderedDict[tuple[str, str, str], tuple[Envelope, int, int]] = OrderedDict()

    def contradicts(self, event: Envelope, sequence: int) -> bool:
        """Whether an event that came before under the same identity says something else; remembers this one.

        Args:
            sequence: Where the stream has it: of two, the ledger counts the one that is first there.
        """
        identity = (event.tenant, event.source, event.id)
        known = self._events.get(identity)
        if known is not None:
            first, at, size = known
            if at <= sequence:
                return at < sequence and not _is_same(first, event)
            del self._events[identity]
            self.held_bytes -= size
        size = ENTRY_BYTES + len(event.body) + len(event.data)
        self._events[identity] = (event, sequence, size)
        self.held_bytes += size
        while self.held_bytes > self._max_bytes:
            self.held_bytes -= self._events.popitem(last=False)[1][2]
        return False


def _is_same(first: Envelope, second: Envelope) -> bool:
    try:
        return first.payload_hash() == second.payload_hash()
    except (ValueError, ArithmeticError, RecursionError):  # the ledger will say what these are
        return True
