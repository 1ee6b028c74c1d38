"""What is known of an API key, and making one; no file.

A key is `kg_` and 43 characters of URL-safe base64 (256 random bits), so a plain hash is enough: there is
nothing to guess.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import msgspec

from kgents_common import subjects
from kgents_common.errors import ConfigurationError

TENANT_SCOPES = ("events:write", "events:read", "usage:read", "billing:read", "sessions:write")
# What concerns every tenant: only a key of every tenant may have it, and only where it is asked for.
OPERATOR_SCOPES = ("meters:write",)
SCOPES = (*TENANT_SCOPES, *OPERATOR_SCOPES)
EVERY_TENANT = "*"
MAX_TENANTS = 1000
MAX_NAME_CHARACTERS = 100


class KeyRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """One key as it is stored: whose it is and what it may do; never the key itself.

    Attributes:
        tenant: Whose it is; empty for a key of several tenants.
        tenants: The tenants of a key of several; `*` alone for all there are and will be.
        expires_at: From then on it is no key any more; None for never.
        name: What an operator calls it.
    """

    id: str
    sha256: str
    tenant: str
    scopes: tuple[str, ...]
    created_at: datetime
    tenants: tuple[str, ...] = ()
    expires_at: datetime | None = None
    name: str = ""

    @property
    def is_wide(self) -> bool:
        """Whether it is a key of several tenants: each request then says of which."""
        return bool(self.tenants)

    def allows(self, tenant: str) -> bool:
        """Whether it may speak for this tenant."""
        if self.is_wide:
            return tenant in self.tenants or self.is_every
        return tenant == self.tenant

    @property
    def is_every(self) -> bool:
        """Whether it is a key of every tenant: an operator's."""
        return self.tenants == (EVERY_TENANT,)

    def is_over(self, now: datetime) -> bool:
        """Whether it has expired."""
        return self.expires_at is not None and self.expires_at <= now


def mint(
    tenant: str | Sequence[str],
    scopes: Sequence[str],
    *,
    now: datetime | None = None,
    expires_at: datetime | None = None,
    name: str = "",
) -> tuple[str, KeyRecord]:
    """A new key and its record; the key is shown once and kept nowhere.

    Args:
        tenant: Whose it is; several, or `*` alone, for a key of several tenants.

    Raises:
        ConfigurationError: A tenant, a scope or the name cannot be, or a scope that concerns every tenant is
            asked for a key of some.
    """
    key = "kg_" + secrets.token_urlsafe(32)
    is_wide = not isinstance(tenant, str) or tenant == EVERY_TENANT
    record = KeyRecord(
        "key_" + secrets.token_hex(8),
        digest(key),
        "" if is_wide else str(tenant),
        tuple(scopes),
        now or datetime.now(UTC),
        tenants=tuple(dict.fromkeys((tenant,) if isinstance(tenant, str) else tenant)) if is_wide else (),
        expires_at=expires_at,
        name=name,
    )
    check(record)
    # Not in `check`: a keyring of before may have such a key, and it must not take the others with it.
    theirs = [scope for scope in scopes if scope in OPERATOR_SCOPES]
    if theirs and not record.is_every:
        raise ConfigurationError(
            f"{theirs[0]} concerns every tenant: only a key of every tenant may have it",
            hint="kgents-api keys create --every-tenant",
        )
    return key, record


def check(record: KeyRecord) -> None:
    """Refuse a record that says nothing clear.

    Raises:
        ConfigurationError: Naming the key and the rule.
    """
    if record.is_wide == bool(record.tenant):
        raise ConfigurationError(f"key {record.id}: has either a tenant or tenants")
    if len(record.tenants) > MAX_TENANTS:
        raise ConfigurationError(f"key {record.id}: at most {MAX_TENANTS} tenants, or '{EVERY_TENANT}'")
    if not record.is_every:
        for tenant in record.tenants or (record.tenant,):
            if not subjects.is_tenant(tenant):
                raise ConfigurationError(f"key {record.id}: tenant must be {subjects.TENANT_RULE}")
    for scope in record.scopes:
        if scope not in SCOPES:
            raise ConfigurationError(f"key {record.id}: unknown scope {scope!r}; known: {', '.join(SCOPES)}")
    if len(record.name) > MAX_NAME_CHARACTERS or (record.name and not record.name.isprintable()):
        raise ConfigurationError(f"key {record.id}: a name is at most {MAX_NAME_CHARACTERS} characters")


def digest(key: str) -> str:
    """The SHA-256 of a key, in hexadecimal."""
    return hashlib.sha256(key.encode()).hexdigest()


def presented(headers: Mapping[str, str]) -> str:
    """What a caller shows: the bearer token, else `X-API-Key`, else nothing. Header names are lower-case."""
    kind, _, value = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and value:
        return value.strip()
    return headers.get("x-api-key", "").strip()
