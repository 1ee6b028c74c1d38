"""How fast a tenant's agents publish straight to NATS, and who is kept out for a while; it ends nothing.

No server limits how fast a connection publishes, and nothing holds an agent back that waits for no
acknowledgement. So what the servers count is looked at: who sent more than its rate allows is cut off,
and let in again later.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NamedTuple

# What a tenant may send at once, in seconds of its rate. Less than the door's, which makes its callers wait.
BURST_SECONDS = 2.0
LONGEST_PAUSE_SECONDS = 600.0
# Who kept to the rate for so long begins with the shortest pause again.
FORGIVEN_AFTER_SECONDS = 600.0


class Sent(NamedTuple):
    """Events and bytes."""

    events: int
    size: int


class Look(NamedTuple):
    """What a server says of one connection.

    Attributes:
        sent: Since it was opened.
        age_seconds: How long it has been open, by the server's clock.
    """

    server: str
    number: int
    tenant: str
    sent: Sent
    age_seconds: float


@dataclass(slots=True)
class _Account:
    events: float = 0.0
    size: float = 0.0
    paused_until: float = float("-inf")
    pause_seconds: float = 0.0


@dataclass(slots=True)
class AgentPace:
    """What each tenant may send, and whether it is out.

    Attributes:
        events: A second, in the long run; 0 for no limit.
        size: The same in bytes.
        pause_seconds: How long who went beyond is kept out at first; twice as long each time again.
    """

    events: int
    size: int
    pause_seconds: float
    _accounts: dict[str, _Account] = field(default_factory=dict)
    _seen: dict[tuple[str, int], Sent] = field(default_factory=dict)
    _looked_at: float | None = None

    def look(self, looks: Collection[Look], now: float) -> list[str]:
        """Take what was seen just now of every connection, the closed ones of late among them.

        Returns:
            The tenants that went beyond what they may and are out from now on.
        """
        elapsed = 0.0 if self._looked_at is None else now - self._looked_at
        self._looked_at = now
        self._drain(elapsed, now)
        seen: dict[tuple[str, int], Sent] = {}
        for one in looks:
            where = (one.server, one.number)
            before = seen.get(where) or self._seen.get(where)
            if before is None:
                # One that is older than our last look was there before we looked: what it sent is not of now.
                before = Sent(0, 0) if one.age_seconds <= elapsed + 1 else one.sent
            account = self._accounts.setdefault(one.tenant, _Account())
            account.events += max(0, one.sent.events - before.events)
            account.size += max(0, one.sent.size - before.size)
            seen[where] = one.sent
        answered = {server for server, _ in seen}
        # A server that did not answer in time has its connections still.
        self._seen = {k: v for k, v in self._seen.items() if k[0] not in answered} | seen
        return [tenant for tenant, account in self._accounts.items() if self._goes_out(account, now)]

    def pause(self, tenant: str, now: float) -> float:
        """For how many seconds the tenant's agents are still kept out; 0 where they are not."""
        account = self._accounts.get(tenant)
        return max(0.0, account.paused_until - now) if account is not None else 0.0

    def _drain(self, elapsed: float, now: float) -> None:
        for tenant, account in list(self._accounts.items()):
            account.events = max(0.0, account.events - self.events * elapsed)
            account.size = max(0.0, account.size - self.size * elapsed)
            is_forgiven = now - account.paused_until > FORGIVEN_AFTER_SECONDS
            if is_forgiven and not account.events and not account.size:
                del self._accounts[tenant]

    def _goes_out(self, account: _Account, now: float) -> bool:
        is_beyond = (0 < self.events * BURST_SECONDS < account.events) or (
            0 < self.size * BURST_SECONDS < account.size
        )
        if not is_beyond or account.paused_until > now:
            return False
        account.pause_seconds = min(2 * account.pause_seconds or self.pause_seconds, LONGEST_PAUSE_SECONDS)
        account.paused_until = now + account.pause_seconds
        account.events = account.size = 0.0
        return True
