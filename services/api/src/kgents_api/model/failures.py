"""How often an address failed to prove itself lately; it knows no request."""

from __future__ import annotations

from collections import OrderedDict

WINDOW_SECONDS = 60.0
MAX_ADDRESSES = 10_000


class FailureCounts:
    """Failures by address within a minute; remembers so many addresses, the least recent forgotten first.

    Counts are this process's own: no neighbour is asked, and what proves itself is never counted.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._counts: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def failed(self, address: str, now_seconds: float) -> bool:
        """Count one failure; whether the address is beyond its limit."""
        began, count = self._counts.pop(address, (now_seconds, 0))
        if now_seconds - began >= WINDOW_SECONDS:
            began, count = now_seconds, 0
        self._counts[address] = (began, count + 1)
        if len(self._counts) > MAX_ADDRESSES:
            self._counts.popitem(last=False)
        return count + 1 > self._limit
