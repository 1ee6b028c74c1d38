"""The signing secrets of Stripe's webhook endpoints, followed while they are rotated; nothing is verified
here.

A line of the file is `whsec_...` or `<name>:whsec_...`; `#` begins a comment. The variable holds the same,
separated by commas. Names are for metrics: an old secret that still signs something is seen there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import structlog

from kgents_common.clock import Clock
from kgents_common.errors import ConfigurationError

RELOAD_SECONDS = 1.0
MAX_SECRETS = 8

_NAME = re.compile(r"[A-Za-z0-9_-]{1,32}")
_SECRET = re.compile(r"whsec_[\x21-\x7e]{8,256}")
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Secret:
    """One signing secret and the name it has in metrics."""

    name: str
    value: bytes

    def __repr__(self) -> str:
        return f"Secret({self.name})"


class WebhookSecrets:
    """The secrets in force: those of the variable and those of the file, which is read again when it
    changes."""

    def __init__(self, inline: str | None, path: Path | None, clock: Clock) -> None:
        """Read them.

        Raises:
            ConfigurationError: None is given, or one is no `whsec_...`. Nothing of a secret is in the
            message.
        """
        self._inline = parse(inline.split(","), "STRIPE_WEBHOOK_SECRETS") if inline else ()
        self._path = path
        self._clock = clock
        self._looked_at = clock.monotonic()
        self._stamp: tuple[int, int, int] | None = None
        self._current = self._load()

    def current(self) -> tuple[Secret, ...]:
        """The secrets in force now; after a bad edit, the last good ones."""
        if self._path is not None and self._clock.monotonic() - self._looked_at >= RELOAD_SECONDS:
            self._looked_at = self._clock.monotonic()
            try:
                if self._file_stamp() != self._stamp:
                    self._current = self._load()
                    _log.info("stripe_secrets.reloaded", names=[secret.name for secret in self._current])
            except (ConfigurationError, OSError) as error:
                _log.error("stripe_secrets.reload_failed", error=str(error))
        return self._current

    def _load(self) -> tuple[Secret, ...]:
        found = self._inline
        if self._path is not None:
            try:
                self._stamp = self._file_stamp()
                lines = self._path.read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigurationError(
                    f"the webhook secrets {self._path} cannot be read: {type(error).__name__}",
                    hint="put the endpoint's signing secret there, a line each: <name>:whsec_...",
                ) from None
            found += parse(lines, str(self._path))
        if not found:
            raise ConfigurationError(
                "no webhook secret: without one, anybody could sign",
                hint="set STRIPE_WEBHOOK_SECRETS or STRIPE_WEBHOOK_SECRETS_FILE, or neither for no door",
            )
        if len(found) > MAX_SECRETS:
            raise ConfigurationError(f"more than {MAX_SECRETS} webhook secrets", hint="remove the old ones")
        return found

    def _file_stamp(self) -> tuple[int, int, int]:
        assert self._path is not None  # noqa: S101 asked only where there is a file
        status = self._path.stat()
        return status.st_mtime_ns, status.st_size, status.st_ino


def parse(entries: Iterable[str], where: str) -> tuple[Secret, ...]:
    """Secrets from entries.

    Raises:
        ConfigurationError: An entry is none; its place is named, its text is not.
    """
    found: list[Secret] = []
    for number, entry in enumerate(entries, 1):
        text = entry.partition("#")[0].strip()
        if not text:
            continue
        name, separator, value = text.partition(":")
        if not separator:
            name, value = f"secret-{len(found) + 1}", text
        if not _NAME.fullmatch(name) or not _SECRET.fullmatch(value.strip()):
            raise ConfigurationError(
                f"{where}, entry {number}: not a webhook secret",
                hint="whsec_... or <name>:whsec_..., as the endpoint's page at Stripe shows it",
            )
        found.append(Secret(name, value.strip().encode()))
    return tuple(found)
