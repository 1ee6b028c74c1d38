"""Who calls, and what they may do; how they prove it is a handler's business."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from kgents_common.keyring import KeyRecord


@dataclass(frozen=True, slots=True)
class Caller:
    """A caller whose credentials were good.

    Attributes:
        credential: The id of the key or session, for a log.
        tenant: Whose it is; empty for a key of several tenants.
        tenants: A key of several tenants, which knows them; None for any other.
        sources: The only sources of a session's events; empty for any.
        agent: The one agent of a session; None for a key, which may speak for any.
    """

    tenant: str
    scopes: frozenset[str]
    credential: str
    agent: str | None = None
    tenants: KeyRecord | None = None
    sources: tuple[str, ...] = ()

    @property
    def owner(self) -> str:
        """Whose share of this process its requests take: its tenant's, or its own for a key of several."""
        return self.tenant or self.credential

    def may_be(self, tenant: str) -> bool:
        """Whether the credentials may speak for this tenant."""
        return self.tenants.allows(tenant) if self.tenants is not None else tenant == self.tenant

    def may(self, scope: str) -> bool:
        """Whether the credentials carry this scope."""
        return scope in self.scopes


class FindsKeys(Protocol):
    """The keyring, as the door needs it."""

    def find(self, key: str) -> KeyRecord | None:
        """The record of a presented key."""

    def by_id(self, key_id: str) -> KeyRecord | None:
        """The record of a key by its id."""
