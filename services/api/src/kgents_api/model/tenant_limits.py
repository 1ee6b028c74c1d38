"""What a tenant may send, in events and in bytes, and its share of what this process holds at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from kgents_api.model.rate_limit import RateLimiter, Verdict

# Buckets of bytes count in these: a request takes one at the least.
UNIT_BYTES = 1024


def units(size: int) -> int:
    """Bytes as tokens, rounded up."""
    return -(-size // UNIT_BYTES)


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit of every tenant.

    Attributes:
        says: What a tenant that meets it is told, e.g. `may send 100 events a second`.
        in_bytes: Whether its tokens are units of bytes; else events.
    """

    limiter: RateLimiter
    says: str
    in_bytes: bool = False

    def tokens(self, events: int, size: int) -> int:
        """What a request of so many events and bytes takes of it."""
        return units(size) if self.in_bytes else events


class Told(msgspec.Struct, frozen=True, gc=False):
    """A limit's word on a request."""

    limit: Limit
    verdict: Verdict


class TenantLimits:
    """All limits at once: a request takes of each of them, or of none."""

    def __init__(self, limits: Sequence[Limit]) -> None:
        self._limits = tuple(limits)

    def refusal(self, tenant: str) -> Told | None:
        """The refusal a tenant meets whatever it sends, if any; asks nobody."""
        for limit in self._limits:
            verdict = limit.limiter.refusal(tenant)
            if verdict is not None:
                return Told(limit, verdict)
        return None

    async def take(self, tenant: str, events: int, size: int) -> Told:
        """Spend what so many events and bytes cost; the refusal, or the first limit's word."""
        taken: list[Told] = []
        for limit in self._limits:
            told = Told(limit, await limit.limiter.take(tenant, limit.tokens(events, size)))
            if not told.verdict.allowed:
                for earlier in taken:
                    earlier.limit.limiter.give_back(tenant, earlier.limit.tokens(events, size))
                return told
            taken.append(told)
        return taken[0]

    def give_back(self, tenant: str, events: int, size: int) -> None:
        """Undo a `take` whose request came to nothing."""
        for limit in self._limits:
            limit.limiter.give_back(tenant, limit.tokens(events, size))


class FairShare:
    """Who may hold how many bytes of this process at once.

    Up to a half of the limit anybody may hold anything. Beyond it a tenant may hold its share: the limit by
    one more than hold something. So those that fill the door leave room for whoever comes; who holds nothing
    may bring one request while there is any room.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._held: dict[str, int] = {}
        self.total = 0

    def enter(self, tenant: str, size: int) -> bool:
        """Whether a request that may be so large may come in; then it is counted until it leaves."""
        held = self._held.get(tenant, 0)
        if self.total + size > self._limit // 2:
            shares = len(self._held) + 1
            if self.total + size > self._limit or (held and held + size > self._limit // shares):
                return False
        self._held[tenant] = held + size
        self.total += size
        return True

    def leave(self, tenant: str, size: int) -> None:
        """The request is answered."""
        left = self._held[tenant] - size
        if left:
            self._held[tenant] = left
        else:
            del self._held[tenant]
        self.total -= size
