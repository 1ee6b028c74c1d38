"""Folding samples into UTC minutes, exactly; where the minutes are kept is a sink's business."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Context, Decimal, Inexact, InvalidOperation, Overflow

from kgents_metering.model.measure import Sample

# Values reach from 1e-724 (float64's least, with 400 digits) to 1.8e308: a sum of them needs at most this
# many digits. Should that ever be wrong, the trap says so instead of rounding a bill.
EXACT = Context(prec=1200, Emin=-9999, Emax=9999, traps=[Inexact, InvalidOperation, Overflow])

_FIRST_EPOCH = datetime(2020, 1, 1, tzinfo=UTC)
_SEQUENCE_BITS = 44  # at ten thousand a second, 55 years
_MOST_SEQUENCES = (1 << _SEQUENCE_BITS) - 1
_MOST_HOURS = (1 << 63 - _SEQUENCE_BITS) - 1

Group = tuple[tuple[str, str], ...]
Key = tuple[int, str, datetime, bytes]


class GroupKeys:
    """The keys of the groups that were seen lately, up to so much memory."""

    # An entry's texts are kept twice, and a character takes at most four bytes.
    ENTRY_BYTES = 500
    CHARACTER_BYTES = 8

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._known: dict[Group, tuple[bytes, str]] = {}
        self.held_bytes = 0

    def of(self, group: Group) -> tuple[bytes, str]:
        """The 16-byte key of a group and its JSON; the same group always has the same key."""
        found = self._known.get(group)
        if found is None:
            text = json.dumps(dict(group), sort_keys=True, ensure_ascii=False)
            found = (hashlib.blake2b(text.encode(), digest_size=16).digest(), text)
            size = self.ENTRY_BYTES + self.CHARACTER_BYTES * len(text)
            if self.held_bytes + size > self._max_bytes:
                self._known.clear()
                self.held_bytes = 0
            if size <= self._max_bytes:
                self._known[group] = found
                self.held_bytes += size
        return found


_group_keys = GroupKeys(16 * 1024 * 1024)
group_key = _group_keys.of


def stream_order(epoch: datetime, seq: int) -> int:
    """Where an event stands among those of its very moment: a number that fits 63 bits.

    It is the stream's order (and so the order within a batch, whose events are published in theirs), and of
    two streams that followed each other the later one's. It comes from the event alone, so a replay into an
    empty ledger gives the same. Rows of earlier releases have smaller numbers.
    """
    hours = int((epoch - _FIRST_EPOCH).total_seconds()) // 3600
    return (max(hours, 1) & _MOST_HOURS) << _SEQUENCE_BITS | (seq & _MOST_SEQUENCES)


@dataclass(slots=True)
class Delta:
    """What is added to one minute of one meter, tenant and group."""

    group: str
    cnt: int = 0
    sum: Decimal | None = None
    min: Decimal | None = None
    max: Decimal | None = None
    last_time: datetime | None = None
    last_n: int | None = None
    last_value: Decimal | None = None

    def add(self, time: datetime, order: int, value: Decimal | None) -> None:
        """Add one sample; `order` is that of samples of one moment: see `stream_order`."""
        self.cnt += 1
        if value is None:
            return
        self.sum = value if self.sum is None else EXACT.add(self.sum, value)
        if self.min is None or value < self.min:
            self.min = value
        if self.max is None or value > self.max:
            self.max = value
        if self.last_time is None or self.last_n is None or (time, order) > (self.last_time, self.last_n):
            self.last_time, self.last_n, self.last_value = time, order, value


class Rollup:
    """Minutes being folded. `deltas` and `distinct` are keyed by (meter, tenant, minute, group key)."""

    def __init__(self) -> None:
        self.deltas: dict[Key, Delta] = {}
        self.distinct: set[tuple[int, str, datetime, bytes, bytes]] = set()

    def add(self, meter: int, tenant: str, time: datetime, order: int, sample: Sample) -> None:
        """Fold one sample of the meter with this id."""
        key, text = group_key(sample.group)
        minute = time.replace(second=0, microsecond=0)
        place = (meter, tenant, minute, key)
        delta = self.deltas.get(place)
        if delta is None:
            delta = self.deltas[place] = Delta(text)
        delta.add(time, order, sample.value)
        if sample.distinct is not None:
            self.distinct.add((*place, sample.distinct))

    def rows(self) -> list[tuple[Key, Delta]]:
        """The minutes in the order in which every worker locks them, so that two never deadlock."""
        return sorted(self.deltas.items(), key=lambda item: item[0])
