"""What backup needs of the outside, as small Protocols; nothing here is an implementation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Entry:
    """One stored file."""

    key: str
    size: int
    modified: datetime


@dataclass(frozen=True, slots=True)
class Versioned:
    """A file's bytes and a token that changes whenever they do."""

    data: bytes
    version: str


class Store(Protocol):
    """Files by key. A file is there whole or not at all; nobody sees half of one.

    One behaviour suite holds for every implementation: `tests/backup/test_stores.py`.
    """

    name: str

    async def put(self, key: str, data: bytes) -> None:
        """Store, durably, replacing what was there.

        Raises:
            StoreError: It is not stored; what was there before still is.
        """

    async def create(self, key: str, data: bytes) -> bool:
        """Store only where there is nothing yet; whether this call did.

        Raises:
            StoreError: The outcome is unknown.
        """

    async def replace(self, key: str, data: bytes, version: str) -> bool:
        """Store only where the file still has this version; whether this call did.

        Raises:
            StoreError: The outcome is unknown.
        """

    async def get(self, key: str) -> bytes:
        """The file's bytes.

        Raises:
            FileNotFoundError: There is none.
            StoreError: The store does not give it.
        """

    async def get_versioned(self, key: str) -> Versioned:
        """The file's bytes and version; errors as `get`."""

    async def list(self, prefix: str) -> Sequence[Entry]:
        """Every file whose key starts with `prefix` (which ends in `/`, or is empty), in key order.

        Raises:
            StoreError: The store does not answer.
        """

    async def delete(self, key: str) -> None:
        """Remove; one that is not there is fine.

        Raises:
            StoreError: It may still be there.
        """


class Progress(Protocol):
    """Who is told how far a long step is."""

    def begin(self, what: str, total: int | None, unit: str) -> None:
        """A step begins; `total` in `unit` where it is known."""

    def advance(self, by: int) -> None:
        """So much more is done."""

    def end(self) -> None:
        """The step is over."""


class NoProgress:
    """Nobody watches."""

    def begin(self, what: str, total: int | None, unit: str) -> None:
        """Nothing."""

    def advance(self, by: int) -> None:
        """Nothing."""

    def end(self) -> None:
        """Nothing."""
