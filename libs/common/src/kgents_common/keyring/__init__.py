"""API keys: who a caller is, from a file that holds only SHA-256 hashes and is followed while it changes."""

from kgents_common.keyring.file import edit, load, write
from kgents_common.keyring.following import Keyring, KeysUnavailableError, open_keyring
from kgents_common.keyring.records import (
    OPERATOR_SCOPES,
    SCOPES,
    TENANT_SCOPES,
    KeyRecord,
    digest,
    mint,
    presented,
)
from kgents_common.keyring.uses import Uses, last_uses

__all__ = [
    "OPERATOR_SCOPES",
    "SCOPES",
    "TENANT_SCOPES",
    "KeyRecord",
    "Keyring",
    "KeysUnavailableError",
    "Uses",
    "digest",
    "edit",
    "last_uses",
    "load",
    "mint",
    "open_keyring",
    "presented",
    "write",
]
