"""How fast a tenant may send: tokens from a bucket that all processes share, taken in leases.

A request seldom asks the bucket: it spends tokens that this process holds already. What one process holds
unspent is the most by which a tenant can be cut short or get ahead, and it is handed back by time alone.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from kgents_common.clock import Clock
from kgents_common.errors import TransientError

# A lease is spent within this time or forgotten, so that processes do not sit on a tenant's tokens.
LEASE_SECONDS = 1.0
# One that is spent within it is followed by one as large; one that is spent sooner than this, by one twice as
# large.
SHORT_LEASE_SECONDS = 0.1
# The largest lease is this part of the burst; a process holds one and a half at the most.
LARGEST_LEASE = 100
# After a bucket that did not answer, everything passes for so long before it is asked again.
OPEN_SECONDS = 0.5
# Tenants come and go for as long as a process runs; beyond so many, those that are quiet are forgotten.
MAX_ACCOUNTS = 10_000


@dataclass(frozen=True, slots=True)
class Quota:
    """So many tokens a second (or every so many `seconds`) in the long run, and so many at once."""

    per_second: int
    burst: int
    seconds: int = 1


@dataclass(frozen=True, slots=True)
class Bucket:
    """What a bucket said: whether the tokens were given, and what it holds now.

    Attributes:
        wait_seconds: Until as many tokens as were asked for are there; 0 where they were given.
        full_seconds: Until it is full.
    """

    given: bool
    left: int
    wait_seconds: float
    full_seconds: float


class Buckets(Protocol):
    """The buckets that all processes share, one for each tenant."""

    async def take(self, tenant: str, tokens: int) -> Bucket:
        """Take all of so many tokens, or none.

        Raises:
            TransientError: It cannot be known.
        """


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """Whether a request may pass.

    Attributes:
        remaining: Tokens left, as far as this process knows; None where nothing is known and it passes.
        reset_seconds: Until the bucket is full where it may pass, until it is worth coming back where not.
    """

    allowed: bool
    remaining: int | None
    reset_seconds: float


UNKNOWN = Verdict(True, None, 0)


@dataclass(slots=True)
class _Account:
    """What this process holds of one tenant's tokens."""

    held: int = 0
    good_until: float = 0.0
    leased_at: float = -LEASE_SECONDS
    lease: int = 0
    may_renew: bool = False
    left: int = 0
    full_at: float = 0.0
    refused_until: float = 0.0
    open_until: float = 0.0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def is_idle(self, now: float) -> bool:
        """Whether a new account would say the same."""
        return now >= max(self.good_until, self.refused_until, self.open_until) and not self.lock.locked()


class RateLimiter:
    """Spends tokens for requests; where the bucket does not answer, requests pass at once."""

    def __init__(self, buckets: Buckets, quota: Quota, clock: Clock) -> None:
        self.quota = quota
        self._buckets = buckets
        self._clock = clock
        self._largest = max(1, quota.burst // LARGEST_LEASE)
        self._renewals: set[asyncio.Task[None]] = set()
        self._accounts: OrderedDict[str, _Account] = OrderedDict()  # the least recently used first

    def refusal(self, tenant: str) -> Verdict | None:
        """The refusal that a tenant meets whatever it sends, if any: asks nobody, so it can come first."""
        account = self._accounts.get(tenant)
        if account is None or account.refused_until <= 0.0:
            return None
        wait = account.refused_until - self._clock.monotonic()
        return Verdict(False, 0, wait) if wait > 0 else None

    async def take(self, tenant: str, tokens: int) -> Verdict:
        """Spend so many tokens of the tenant, or none."""
        account = self._accounts.get(tenant)
        if account is None:
            account = self._accounts[tenant] = _Account()
            self._forget_idle()
        else:
            self._accounts.move_to_end(tenant)
        verdict = self._spend(account, tenant, tokens)
        if verdict is not None:
            return verdict
        async with account.lock:  # the others wait for the answer that this one gets
            verdict = self._spend(account, tenant, tokens)
            if verdict is not None:
                return verdict
            try:
                return await self._lease(account, tenant, tokens)
            except TransientError:
                account.open_until = self._clock.monotonic() + OPEN_SECONDS
                return UNKNOWN

    def give_back(self, tenant: str, tokens: int) -> None:
        """Take back what was spent by a request that came to nothing; this process spends it again soon."""
        account = self._accounts.get(tenant)
        if account is None or account.open_until > self._clock.monotonic():  # nothing was taken
            return
        now = self._clock.monotonic()
        account.held = tokens + (account.held if now < account.good_until else 0)
        account.good_until = now + LEASE_SECONDS

    def _forget_idle(self) -> None:
        """Keep to the limit by dropping accounts that say nothing any more; what one still says is kept."""
        now = self._clock.monotonic()
        while len(self._accounts) > MAX_ACCOUNTS:
            tenant, account = next(iter(self._accounts.items()))
            if not account.is_idle(now):
                break
            del self._accounts[tenant]

    def _spend(self, account: _Account, tenant: str, tokens: int) -> Verdict | None:
        """Spend what is held; None where the bucket must be asked."""
        now = self._clock.monotonic()
        if account.held >= tokens and now < account.good_until:
            account.held -= tokens
            if account.may_renew and account.held < account.lease // 2:
                account.may_renew = False
                renewal = asyncio.create_task(self._renew(account, tenant))
                self._renewals.add(renewal)
                renewal.add_done_callback(self._renewals.discard)
            return Verdict(True, account.left + account.held, max(0.0, account.full_at - now))
        return UNKNOWN if now < account.open_until else None

    async def _renew(self, account: _Account, tenant: str) -> None:
        """Take the next lease before this one is spent: a busy tenant's requests wait for no answer."""
        with contextlib.suppress(TransientError):  # who finds no token asks again, and hears of it
            async with account.lock:
                await self._lease(account, tenant, 0)

    async def _lease(self, account: _Account, tenant: str, tokens: int) -> Verdict:
        now = self._clock.monotonic()
        lease = account.lease if now < account.good_until else 0
        if now - account.leased_at < SHORT_LEASE_SECONDS:
            lease = min(lease * 2, self._largest)
        wanted = max(tokens, lease)
        bucket = await self._buckets.take(tenant, wanted)
        if not bucket.given and wanted > tokens > 0:
            wanted = tokens
            bucket = await self._buckets.take(tenant, wanted)
        now = self._clock.monotonic()
        if not bucket.given:
            # Others may still find room for less, but only a request that asked for one token proves that
            # there is none at all.
            if tokens == 1:
                account.refused_until = now + bucket.wait_seconds
            return Verdict(False, bucket.left, bucket.wait_seconds)
        if now >= account.good_until:
            account.held = 0
        account.held += wanted - tokens
        account.lease = wanted
        account.may_renew = wanted > tokens
        account.leased_at = now
        account.good_until = now + LEASE_SECONDS
        account.left = bucket.left
        account.full_at = now + bucket.full_seconds
        account.refused_until = 0.0
        return Verdict(True, account.left + account.held, bucket.full_seconds)
