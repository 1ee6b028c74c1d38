"""The one identity of an event, and the digest of what it says: both frozen; it reads no event."""

from __future__ import annotations

import hashlib


def identity(tenant: str, source: str, event_id: str) -> bytes:
    """blake2b-128 of tenant, source and id, each preceded by its length in bytes (4 bytes, big endian).

    It is the `Nats-Msg-Id` (in hexadecimal), the ledger's permanent key, and what OpenMeter deduplicates by.
    Changing it re-bills everything: it is frozen.
    """
    return digest(tenant.encode(), source.encode(), event_id.encode())


def digest(*parts: bytes) -> bytes:
    """blake2b-128 of the parts, each preceded by its length in bytes (4 bytes, big endian)."""
    hashed = hashlib.blake2b(digest_size=16)
    for part in parts:
        hashed.update(len(part).to_bytes(4, "big"))
        hashed.update(part)
    return hashed.digest()
