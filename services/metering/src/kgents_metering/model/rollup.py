"""Folding samples into UTC minutes, exactly; where the minutes are kept is a sink's business."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime
from decimal import Context, Decimal, Inexact, InvalidOperation, Overflow

from kgents_metering.model.measure import Sample

# Values reach from 1e-724 (float64's least, with 400 digits) to 1.8e308: a sum of them needs at most this
# many digits. Should that ever be wrong, the trap says so instead of rounding a bill.
EXACT = Context(prec=1200, Emin=-9999, Emax=9999, traps=[Inexact, InvalidOperation, Overflow])

Group = tuple[tuple[str, str], ...]
Key = tuple[int, str, datetime, bytes]

_group_keys: dict[Group, tuple[bytes, str]] = {}
_GROUP_CACHE = 10_000


def group_key(group: Group) -> tuple[bytes, str]:
    """The 16-byte key of a group and its JSON; the same group always has the same key."""
    found = _group_keys.get(group)
    if found is None:
        text = json.dumps(dict(group), sort_keys=True, ensure_ascii=False)
        found = (hashlib.blake2b(text.encode(), digest_size=16).digest(), text)
        if len(_group_keys) >= _GROUP_CACHE:
            _group_keys.clear()
        _group_keys[group] = found
    return found


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

    def add(self, time: datetime, n: int, value: Decimal | None) -> None:
        """Add one sample; `n` orders samples of one moment."""
        self.cnt += 1
        if value is None:
            return
        self.sum = value if self.sum is None else EXACT.add(self.sum, value)
        if self.min is None or value < self.min:
            self.min = value
        if self.max is None or value > self.max:
            self.max = value
        if self.last_time is None or self.last_n is None or (time, n) > (self.last_time, self.last_n):
            self.last_time, self.last_n, self.last_value = time, n, value


class Rollup:
    """Minutes being folded. `deltas` and `distinct` are keyed by (meter, tenant, minute, group key)."""

    def __init__(self) -> None:
        self.deltas: dict[Key, Delta] = {}
        self.distinct: set[tuple[int, str, datetime, bytes, bytes]] = set()

    def add(self, meter: int, tenant: str, time: datetime, n: int, sample: Sample) -> None:
        """Fold one sample of the meter with this id."""
        key, text = group_key(sample.group)
        minute = time.replace(second=0, microsecond=0)
        place = (meter, tenant, minute, key)
        delta = self.deltas.get(place)
        if delta is None:
            delta = self.deltas[place] = Delta(text)
        delta.add(time, n, sample.value)
        if sample.distinct is not None:
            self.distinct.add((*place, sample.distinct))

    def rows(self) -> list[tuple[Key, Delta]]:
        """The minutes in the order in which every worker locks them, so that two never deadlock."""
        return sorted(self.deltas.items(), key=lambda item: item[0])
