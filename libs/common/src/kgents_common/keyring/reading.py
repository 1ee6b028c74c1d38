"""Whose data a request may read, from its API key; for doors whose refusals are Starlette's HTTPException."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from starlette.exceptions import HTTPException
from starlette.requests import Request

from kgents_common.keyring.records import KeyRecord, presented

SUBJECT = "subject"


class FindsKeys(Protocol):
    """The keyring, as such a door needs it."""

    def find(self, key: str) -> KeyRecord | None:
        """The record of a presented key."""


def tenant_of(keyring: FindsKeys, request: Request, scope: str) -> str:
    """The tenant: the key's own, or the one of a key's several that the parameter `subject` names.

    Raises:
        HTTPException: As `record_of` and `tenants_of`; 400 where `subject` names more than one.
        KeysUnavailableError: Nobody can say now.
    """
    record = record_of(keyring, request, scope)
    tenants = tenants_of(record, request.query_params.getlist(SUBJECT))
    if len(tenants) != 1:
        raise HTTPException(400, f"{SUBJECT}: name one tenant here")
    return tenants[0]


def record_of(keyring: FindsKeys, request: Request, scope: str) -> KeyRecord:
    """The record of the key that a request shows.

    Raises:
        HTTPException: 401 without a good key, 403 without the scope.
        KeysUnavailableError: Nobody can say now.
    """
    record = keyring.find(presented(request.headers))
    if record is None:
        raise HTTPException(401, "these credentials are not known", {"www-authenticate": "Bearer"})
    if scope not in record.scopes:
        raise HTTPException(403, f"these credentials lack the scope {scope}")
    return record


def tenants_of(record: KeyRecord, named: Collection[str]) -> tuple[str, ...]:
    """The tenants: the key's own, or those of a key's several that are named, in the order of their names.

    Raises:
        HTTPException: 400 where a key of several tenants names none, 403 where it names another's.
    """
    if not record.is_wide:
        return (record.tenant,)
    if not named:
        raise HTTPException(400, f"{SUBJECT}: a key of several tenants names whose data it asks for")
    if not all(record.allows(tenant) for tenant in named):
        raise HTTPException(403, f"{SUBJECT}: not one of the tenants of these credentials")
    return tuple(sorted(set(named)))
