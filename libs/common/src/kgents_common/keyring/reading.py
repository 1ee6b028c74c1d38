"""Whose data a request may read, from its API key; for doors whose refusals are Starlette's HTTPException."""

from __future__ import annotations

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
        HTTPException: 401 without a good key, 403 without the scope or for another's tenant, 400 where a key
            of several tenants comes without one `subject`.
        KeysUnavailableError: Nobody can say now.
    """
    record = keyring.find(presented(request.headers))
    if record is None:
        raise HTTPException(401, "these credentials are not known", {"www-authenticate": "Bearer"})
    if scope not in record.scopes:
        raise HTTPException(403, f"these credentials lack the scope {scope}")
    if not record.is_wide:
        return record.tenant
    named = set(request.query_params.getlist(SUBJECT))
    if len(named) != 1:
        raise HTTPException(400, f"{SUBJECT}: a key of several tenants names one of them")
    tenant = named.pop()
    if not record.allows(tenant):
        raise HTTPException(403, f"{SUBJECT}: not one of the tenants of these credentials")
    return tenant
