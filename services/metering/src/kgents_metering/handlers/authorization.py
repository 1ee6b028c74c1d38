"""Whose usage a request may read: from its API key and, for a key of several tenants, its `subject`."""

from __future__ import annotations

from collections.abc import Callable

from starlette.requests import Request

from kgents_common.keyring.reading import FindsKeys, tenant_of

SCOPE = "usage:read"


def tenant_by_key(keyring: FindsKeys) -> Callable[[Request], str]:
    """A function from a request to its tenant; it raises what `tenant_of` does."""
    return lambda request: tenant_of(keyring, request, SCOPE)
