"""When keys were last used: each process writes what it saw, to a file of its own in one directory.

It is a help for operators and decides nothing, so it is written seldom, and a directory that cannot be
written costs nobody anything.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import msgspec
import structlog

from kgents_common.clock import Clock

EVERY_SECONDS = 60.0

_DECODER = msgspec.json.Decoder(dict[str, datetime])
_FOREIGN = re.compile(r"[^A-Za-z0-9_.-]")
_log = structlog.get_logger()


class Uses:
    """What one process saw.

    Args:
        instance: The process's name: its file's.
    """

    def __init__(self, directory: Path, instance: str, clock: Clock) -> None:
        self._path = directory / f"{_FOREIGN.sub('_', instance)}.json"
        self._clock = clock
        self._seen: dict[str, datetime] | None = None
        self._written_at = -EVERY_SECONDS
        self._is_unwritten = False
        self._is_told = False

    def note(self, key_id: str) -> None:
        """A key was used now."""
        if self._seen is None:  # what this process saw before it was restarted
            self._seen = dict(_read(self._path))
        self._seen[key_id] = self._clock.now()
        self._is_unwritten = True

    def flush(self) -> None:
        """Write what was noted, if it is time; called again and again."""
        now = self._clock.monotonic()
        if self._is_unwritten and self._seen and now - self._written_at >= EVERY_SECONDS:
            self._written_at, self._is_unwritten = now, False
            self._write(self._seen)

    def _write(self, seen: Mapping[str, datetime]) -> None:
        temporary = self._path.with_suffix(f".{os.getpid()}.new")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(msgspec.json.encode(seen))
            temporary.replace(self._path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            if not self._is_told:
                self._is_told = True
                _log.warning("keyring.uses_not_kept", error=error.strerror)


def last_uses(directory: Path) -> dict[str, datetime]:
    """The newest use of each key that any process saw, to a minute."""
    found: dict[str, datetime] = {}
    if not directory.is_dir():
        return found
    for path in directory.glob("*.json"):
        for key_id, at in _read(path).items():
            found[key_id] = max(at, found.get(key_id, at))
    return found


def _read(path: Path) -> Mapping[str, datetime]:
    try:
        return _DECODER.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return {}
