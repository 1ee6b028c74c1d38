"""API keys: who a caller is, from a file that holds only SHA-256 hashes and is read again when it changes.

The file is JSON: `{"keys": [{"id", "sha256", "tenant", "scopes", "created_at"}]}`. A key is `kg_` and 43
characters of URL-safe base64 (256 random bits), so a plain hash is enough: there is nothing to guess.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import structlog

from kgents_common import subjects
from kgents_common.clock import Clock, SystemClock
from kgents_common.errors import ConfigurationError

TENANT_SCOPES = ("events:write", "events:read", "usage:read", "billing:read", "sessions:write")
# What concerns every tenant: an operator's, never a key's unless it is asked for.
OPERATOR_SCOPES = ("meters:write",)
SCOPES = (*TENANT_SCOPES, *OPERATOR_SCOPES)
RELOAD_SECONDS = 1.0

_log = structlog.get_logger()


class KeyRecord(msgspec.Struct, frozen=True):
    """One key as it is stored: whose it is and what it may do; never the key itself."""

    id: str
    sha256: str
    tenant: str
    scopes: tuple[str, ...]
    created_at: datetime


class _Document(msgspec.Struct):
    keys: list[KeyRecord]


def mint(
    tenant: str, scopes: Sequence[str] = TENANT_SCOPES, *, now: datetime | None = None
) -> tuple[str, KeyRecord]:
    """A new key and its record; the key is shown once and kept nowhere.

    Raises:
        ConfigurationError: The tenant or a scope is not one we know.
    """
    key = "kg_" + secrets.token_urlsafe(32)
    record = KeyRecord(
        "key_" + secrets.token_hex(8), digest(key), tenant, tuple(scopes), now or datetime.now(UTC)
    )
    _check(record)
    return key, record


def digest(key: str) -> str:
    """The SHA-256 of a key, in hexadecimal."""
    return hashlib.sha256(key.encode()).hexdigest()


def presented(headers: Mapping[str, str]) -> str:
    """What a caller shows: the bearer token, else `X-API-Key`, else nothing. Header names are lower-case."""
    kind, _, value = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and value:
        return value.strip()
    return headers.get("x-api-key", "").strip()


def load(path: Path) -> list[KeyRecord]:
    """The records of a keyring file.

    Raises:
        ConfigurationError: The file is missing, is not JSON of this shape, or names a wrong tenant or scope.
    """
    try:
        document = msgspec.json.decode(path.read_bytes(), type=_Document)
    except OSError as error:
        raise ConfigurationError(
            f"the keyring {path} cannot be read: {error.strerror}",
            hint="make one: kgents-api keys create --tenant <tenant>",
        ) from error
    except msgspec.DecodeError as error:
        raise ConfigurationError(f"the keyring {path} is not valid: {error}") from error
    for record in document.keys:
        _check(record)
    return document.keys


def write(path: Path, records: Iterable[KeyRecord]) -> None:
    """Replace the file in one step, readable by its owner only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    with os.fdopen(handle, "wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(_Document(list(records))), indent=2) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    Path(temporary).replace(path)


def _check(record: KeyRecord) -> None:
    if not subjects.is_tenant(record.tenant):
        raise ConfigurationError(f"key {record.id}: tenant must be {subjects.TENANT_RULE}")
    for scope in record.scopes:
        if scope not in SCOPES:
            raise ConfigurationError(f"key {record.id}: unknown scope {scope!r}; known: {', '.join(SCOPES)}")


class Keyring:
    """Looks keys up by their hash; follows the file, and keeps the last good one when an edit is wrong."""

    def __init__(self, path: Path, clock: Clock | None = None) -> None:
        """Read the file.

        Raises:
            ConfigurationError: As `load`.
        """
        self._path = path
        self._clock = clock or SystemClock()
        self._by_hash: dict[str, KeyRecord] = {}
        self._by_id: dict[str, KeyRecord] = {}
        self._tenants: frozenset[str] = frozenset()
        self._stamp: tuple[int, int, int] | None = None
        self._looked_at = self._clock.monotonic()
        self._adopt()

    def find(self, key: str) -> KeyRecord | None:
        """The record of a presented key; None where it is unknown.

        The lookup is by the hash of the key, so its time tells nothing about any stored key.
        """
        self._follow()
        if not key.startswith("kg_") or len(key) > 128 or not key.isascii():
            return None
        return self._by_hash.get(digest(key))

    def by_id(self, key_id: str) -> KeyRecord | None:
        """The record of a key by its id; None where there is none any more."""
        self._follow()
        return self._by_id.get(key_id)

    def has_tenant(self, tenant: str) -> bool:
        """Whether any key is of this tenant."""
        self._follow()
        return tenant in self._tenants

    def _follow(self) -> None:
        if self._clock.monotonic() - self._looked_at >= RELOAD_SECONDS:
            self._reload()

    def _reload(self) -> None:
        self._looked_at = self._clock.monotonic()
        try:
            if self._file_stamp() != self._stamp:
                self._adopt()
                _log.info("keyring.reloaded", keys=len(self._by_hash))
        except (ConfigurationError, OSError) as error:
            _log.error("keyring.reload_failed", error=str(error))

    def _adopt(self) -> None:
        records = load(self._path)
        self._by_hash = {record.sha256: record for record in records}
        self._by_id = {record.id: record for record in records}
        self._tenants = frozenset(record.tenant for record in records)
        self._stamp = self._file_stamp()

    def _file_stamp(self) -> tuple[int, int, int]:
        status = self._path.stat()
        return status.st_mtime_ns, status.st_size, status.st_ino
