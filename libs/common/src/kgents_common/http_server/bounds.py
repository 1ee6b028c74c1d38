"""What all connections of a server may hold together, and those of one address; it knows no HTTP.

A server that is at a limit does not shut out the next client: it ends the connection that waits the longest
for its own client. One that sends its request at once never waits long.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import Protocol

CONNECTIONS = 4096
CONNECTIONS_AN_ADDRESS = 512
MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """How much clients may hold.

    Attributes:
        connections: Open at once.
        connections_an_address: Of them by one address, unless it is a proxy that the server trusts.
        head_bytes: In heads that are not whole yet, of all connections together.
        head_bytes_an_address: Of them by one address, unless it is such a proxy.
    """

    connections: int = CONNECTIONS
    connections_an_address: int = CONNECTIONS_AN_ADDRESS
    head_bytes: int = 16 * MIB
    head_bytes_an_address: int = 2 * MIB


class Addresses(Protocol):
    """A set of addresses."""

    def __contains__(self, address: str, /) -> bool: ...


class Client(Protocol):
    """A connection, as the bounds need it."""

    address: str

    def end(self, reason: str) -> None:
        """Close it: nothing was answered on it that its client waits for."""


class Bounds:
    """Keeps count, and ends connections beyond the limits.

    Attributes:
        ended: How many connections were ended, by why: `connections`, `address`, `heads`.
    """

    def __init__(self, limits: Limits, trusted: Addresses) -> None:
        self.limits = limits
        self.ended: Counter[str] = Counter()
        self._trusted = trusted
        self._open: Counter[str] = Counter()
        self._total = 0
        # Connections that wait for their clients, by how long; those of them that have begun a head.
        self._waiting: OrderedDict[Client, None] = OrderedDict()
        self._heads: OrderedDict[Client, int] = OrderedDict()
        self._head_bytes = 0
        self._head_bytes_by: Counter[str] = Counter()

    @property
    def connections(self) -> int:
        """How many are open."""
        return self._total

    @property
    def head_bytes(self) -> int:
        """How much is held in heads that are not whole."""
        return self._head_bytes

    def opened(self, client: Client) -> None:
        """Count a connection; it, or the one that waits the longest, is ended beyond a limit."""
        self._total += 1
        self._open[client.address] += 1
        self._waiting[client] = None
        of_one = self._open[client.address]
        if of_one > self.limits.connections_an_address and client.address not in self._trusted:
            self._end(client, "address")
        elif self._total > self.limits.connections:
            self._end(next(iter(self._waiting)), "connections")

    def closed(self, client: Client) -> None:
        """Forget a connection."""
        self._total -= 1
        self._open[client.address] -= 1
        if not self._open[client.address]:
            del self._open[client.address]
        self._waiting.pop(client, None)
        self._let_go(client)

    def waits(self, client: Client) -> None:
        """A connection waits for its client's next request."""
        self._waiting[client] = None
        self._waiting.move_to_end(client)

    def holds(self, client: Client, head_bytes: int) -> None:
        """A connection holds so many bytes of a head that is not whole."""
        grown = head_bytes - self._heads.get(client, 0)
        self._heads[client] = head_bytes
        self._head_bytes += grown
        self._head_bytes_by[client.address] += grown
        while self._head_bytes > self.limits.head_bytes:
            self._end(next(iter(self._heads)), "heads")
        if client.address in self._trusted:
            return
        while self._head_bytes_by[client.address] > self.limits.head_bytes_an_address:
            self._end(next(c for c in self._heads if c.address == client.address), "heads")

    def has_whole_head(self, client: Client) -> None:
        """A connection waits for its client no more: what its request costs is bounded by others."""
        self._waiting.pop(client, None)
        self._let_go(client)

    def _let_go(self, client: Client) -> None:
        held = self._heads.pop(client, None)
        if held is None:
            return
        self._head_bytes -= held
        self._head_bytes_by[client.address] -= held
        if not self._head_bytes_by[client.address]:
            del self._head_bytes_by[client.address]

    def _end(self, client: Client, reason: str) -> None:
        self.ended[reason] += 1
        self._waiting.pop(client, None)
        self._let_go(client)
        client.end(reason)
