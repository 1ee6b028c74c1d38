"""Whose usage a request may read: from its API key, nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from starlette.exceptions import HTTPException
from starlette.requests import Request

from kgents_common.keyring import KeyRecord, presented

SCOPE = "usage:read"


class FindsKeys(Protocol):
    """The keyring, as this door needs it."""

    def find(self, key: str) -> KeyRecord | None:
        """The record of a presented key."""


def tenant_by_key(keyring: FindsKeys) -> Callable[[Request], str]:
    """A function from a request to its tenant; it raises HTTPException, 401 or 403."""

    def tenant_of(request: Request) -> str:
        record = keyring.find(presented(request.headers))
        if record is None:
            raise HTTPException(401, "these credentials are not known", {"www-authenticate": "Bearer"})
        if SCOPE not in record.scopes:
            raise HTTPException(403, f"these credentials lack the scope {SCOPE}")
        return record.tenant

    return tenant_of
