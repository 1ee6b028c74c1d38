"""Looking keys up while their file changes; who cannot read it any more stops trusting what it knew."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path

import structlog
from prometheus_client import CollectorRegistry, Gauge

from kgents_common.clock import Clock, SystemClock
from kgents_common.errors import ConfigurationError, TransientError
from kgents_common.health import Check, Status
from kgents_common.keyring.file import Stamp, read, stamp_of
from kgents_common.keyring.records import EVERY_TENANT, KeyRecord, digest
from kgents_common.keyring.uses import Uses
from kgents_common.settings import ServiceSettings

RELOAD_SECONDS = 1.0
# A slip of the editor, or a volume that is away for a moment, locks nobody out; a key may be revoked by then.
STALE_SECONDS = 300.0
MAX_KEY_CHARACTERS = 128
# A key that nobody used for so long may end without anybody's noticing.
IN_USE_SECONDS = 86400.0

_log = structlog.get_logger()


class KeysUnavailableError(TransientError):
    """Nobody can say whether a key is still good: what was known is too old."""


def open_keyring(
    settings: ServiceSettings, path: Path | None, clock: Clock, registry: CollectorRegistry
) -> Keyring:
    """The keyring of a service, noting uses where its settings say so; metrics tell when a key in use ends.

    Raises:
        ConfigurationError: None is named; else as `load`.
    """
    if path is None:
        raise ConfigurationError("no keyring is named", hint="set KGENTS_KEYRING_FILE")
    directory = settings.keyring_uses_directory
    uses = None if directory is None else Uses(directory, f"{settings.instance}-{settings.port}", clock)
    keyring = Keyring(path, clock, uses)
    Gauge(
        "kgents_keys_next_expiry_timestamp_seconds",
        "When the first of the keys ends that were used here in the last day; +Inf where none will",
        registry=registry,
    ).set_function(keyring.next_expiry)
    return keyring


class Keyring:
    """Looks keys up by their hash; follows the file, and keeps the last good one for minutes if it is wrong.

    Args:
        uses: Where it is kept when a key was last used; None to keep it nowhere.
    """

    def __init__(self, path: Path, clock: Clock | None = None, uses: Uses | None = None) -> None:
        """Read the file.

        Raises:
            ConfigurationError: As `load`.
        """
        self._path = path
        self._clock = clock or SystemClock()
        self._uses = uses
        self._by_hash: dict[str, KeyRecord] = {}
        self._by_id: dict[str, KeyRecord] = {}
        self._tenants: frozenset[str] = frozenset()
        self._used_at: dict[str, float] = {}
        self._stamp: Stamp | None = None
        self._looked_at = self._good_at = self._clock.monotonic()
        self._fault = ""
        self._adopt()

    def find(self, key: str) -> KeyRecord | None:
        """The record of a presented key; None where it is unknown, or over.

        The lookup is by the hash of the key, so its time tells nothing about any stored key.

        Raises:
            KeysUnavailableError: The file could not be read for minutes.
        """
        self._follow()
        if not key.startswith("kg_") or len(key) > MAX_KEY_CHARACTERS or not key.isascii():
            return None
        return self._if_good(self._by_hash.get(digest(key)), is_use=True)

    def by_id(self, key_id: str) -> KeyRecord | None:
        """The record of a key by its id; None where there is none any more.

        Raises:
            KeysUnavailableError: As `find`.
        """
        self._follow()
        return self._if_good(self._by_id.get(key_id))

    def has_tenant(self, tenant: str) -> bool:
        """Whether some key is this tenant's, or lists it."""
        with contextlib.suppress(KeysUnavailableError):  # it opens nothing: a name may be old
            self._follow()
        return tenant in self._tenants

    def next_expiry(self) -> float:
        """The Unix time at which the first of the keys in use ends; infinite where none will."""
        now, after = self._clock.now(), self._clock.monotonic() - IN_USE_SECONDS
        ends = (
            record.expires_at.timestamp()
            for id_, used_at in list(self._used_at.items())
            if used_at >= after
            and (record := self._by_id.get(id_)) is not None
            and record.expires_at is not None
            and not record.is_over(now)
        )
        return min(ends, default=math.inf)

    def check(self) -> Check:
        """For health: whether the file can be read, and for how long it could not."""
        try:
            self._follow()
        except KeysUnavailableError as error:
            return Check(Status.DOWN, str(error))
        return Check(Status.DEGRADED, self._fault) if self._fault else Check(Status.OK)

    def _if_good(self, record: KeyRecord | None, *, is_use: bool = False) -> KeyRecord | None:
        if record is None:
            return None
        if record.expires_at is not None and record.is_over(self._clock.now()):
            return None
        if record.expires_at is not None:
            self._used_at[record.id] = self._clock.monotonic()
        if is_use and self._uses is not None:
            self._uses.note(record.id)
        return record

    def _follow(self) -> None:
        now = self._clock.monotonic()
        if now - self._looked_at >= RELOAD_SECONDS:
            self._looked_at = now
            self._reload(now)
            if self._uses is not None:
                self._uses.flush()
        if now - self._good_at > STALE_SECONDS:
            raise KeysUnavailableError(f"the keys cannot be read: {self._fault}")

    def _reload(self, now: float) -> None:
        try:
            # A file that was wrong is read again even where it did not change: its mode may have.
            if self._fault or stamp_of(self._path) != self._stamp:
                self._adopt()
                _log.info("keyring.reloaded", keys=len(self._by_hash))
        except (ConfigurationError, OSError) as error:
            if not self._fault:
                _log.error("keyring.reload_failed", error=str(error))
            self._fault = str(error)
        else:
            self._fault = ""
            self._good_at = now

    def _adopt(self) -> None:
        records, self._stamp = read(self._path)
        self._by_hash = {record.sha256: record for record in records}
        self._by_id = {record.id: record for record in records}
        self._used_at = {id_: at for id_, at in self._used_at.items() if id_ in self._by_id}
        self._tenants = frozenset(
            tenant for record in records for tenant in (record.tenant, *record.tenants) if tenant
        ) - {EVERY_TENANT}
