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
        agent: The one agent of a session; None for a key, which may speak for any.
    """

    tenant: str
    scopes: frozenset[str]
    credential: str
    agent: str | None = None

    def may(self, scope: str) -> bool:
        """Whether the credentials carry this scope."""
        return scope in self.scopes


class FindsKeys(Protocol):
    """The keyring, as the door needs it."""

    def find(self, key: str) -> KeyRecord | None:
        """The record of a presented key."""

    def by_id(self, key_id: str) -> KeyRecord | None:
        """The record of a key by its id."""
