"""Copying the local store to the off-site one: what is missing there and sound here, in a good order.

What is there stays: a damaged file here never replaces a good one there. A line's beginning goes before its
segments, a snapshot's manifest after its parts, a line's head last.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from kgents_backup.model.faults import CorruptError, StoreError
from kgents_backup.model.keys import HEADS, MANIFEST, VERIFIED, SegmentName, line_key
from kgents_backup.model.ports import Entry, NoProgress, Progress
from kgents_backup.operations.soundness import Soundness
from kgents_backup.sinks.store import Vault
from kgents_common.crash import CrashPoints

PREFIXES = ("lines/", "segments/", "snapshots/", "databases/", HEADS)

_log = structlog.get_logger()


async def upload_missing(
    local: Vault,
    offsite: Vault,
    *,
    progress: Progress | None = None,
    crash: CrashPoints | None = None,
) -> int:
    """Copy every file that the off-site store lacks; how many.

    A file that is there with another size may have been cut by a service that is not atomic: the one that
    is sound stays. Snapshots without a manifest are not copied: they are unfinished.

    Raises:
        CorruptError: Files here are damaged and were not copied, but everything else was.
        StoreError: One of the stores failed; what was copied stays, the rest comes with the next call.
    """
    progress = progress or NoProgress()
    crash = crash or CrashPoints(None)
    missing: list[tuple[Entry, bool]] = []
    for prefix in PREFIXES:
        there = {e.key: e.size for e in await offsite.store.list(prefix)}
        here = list(await local.store.list(prefix))
        finished = {e.key.removesuffix(MANIFEST) for e in here if e.key.endswith("/" + MANIFEST)}
        missing += [
            (e, e.key in there)
            for e in here
            if there.get(e.key) != e.size
            and not e.key.endswith("/" + VERIFIED)  # each store is read back itself
            and (prefix not in ("snapshots/", "databases/") or _folder(e.key) in finished)
        ]
    progress.begin("upload", sum(e.size for e, _ in missing), "bytes")
    damaged: list[str] = []
    copied = 0
    copier = _Copier(local, offsite)
    try:
        for entry, is_there in sorted(missing, key=_order):
            if entry.key.endswith("/" + MANIFEST):
                crash.reach("upload.before_manifest")
            try:
                copied += await copier.copy(entry.key, is_there=is_there)
            except FileNotFoundError:  # pruned meanwhile
                continue
            except CorruptError as error:
                damaged.append(error.key)
                _log.error("upload.damaged_here", file=error.key, reason=str(error))
                continue
            crash.reach("upload.after_file")
            progress.advance(entry.size)
    finally:
        progress.end()
    if damaged:
        raise CorruptError(damaged[0], f"is damaged here and was not copied ({len(damaged)} files are)")
    return copied


class _Copier:
    """Copies one file at a time, only what is sound, never over what is."""

    def __init__(self, local: Vault, offsite: Vault) -> None:
        self._local = local
        self._offsite = offsite
        self._here = Soundness(local)
        self._there = Soundness(offsite)

    async def copy(self, key: str, *, is_there: bool = False) -> int:
        """Copy it; 1 where that changed something, 0 where it was there.

        Raises:
            CorruptError: It is damaged here.
            FileNotFoundError: It is gone here.
            StoreError: A store failed.
        """
        data = await self._local.store.get(key)
        reason = await self._here.fault(key, data)
        if reason:
            raise CorruptError(key, reason.partition(": ")[2] or reason)
        if not is_there and await self._offsite.store.create(key, data):
            return 1
        try:
            found = await self._offsite.store.get(key)
        except FileNotFoundError:
            found = b""
        if found == data or (found and not await self._there.fault(key, found)):
            return 0
        await self._offsite.store.put(key, data)
        return 1


class SegmentUploader:
    """Copies segments as they are stored, in order, retrying until the off-site store takes them.

    Args:
        on_upload: Told after each success.
    """

    def __init__(
        self,
        local: Vault,
        offsite: Vault,
        *,
        on_upload: Callable[[], None] = lambda: None,
        retry_seconds: float = 5,
    ) -> None:
        self._local = local
        self._offsite = offsite
        self._copier = _Copier(local, offsite)
        self._on_upload = on_upload
        self._retry = retry_seconds
        self._wanted = asyncio.Event()
        self._queue: dict[SegmentName, None] = {}
        self._lines: set[str] = set()
        self.last_error: str = ""
        self.damaged: str = ""

    @property
    def waiting(self) -> int:
        """Segments that are not off-site yet, as far as this process knows."""
        return len(self._queue)

    def add(self, name: SegmentName) -> None:
        """Have a stored segment copied."""
        self._queue[name] = None
        self._wanted.set()

    async def run(self) -> None:
        """Begin with everything that is missing, then follow; for ever."""
        is_complete = False
        while True:
            try:
                if not is_complete:
                    await self._missing()
                    is_complete = True
                    self._on_upload()
                while self._queue:
                    name = next(iter(self._queue))
                    await self._copy(name)
                    self._queue.pop(name, None)
                self.last_error = ""
                self._wanted.clear()
                await self._wanted.wait()
            except StoreError as error:
                self.last_error = str(error)
                _log.warning("upload.failed", error=str(error), waiting=len(self._queue))
                await asyncio.sleep(self._retry)

    async def _missing(self) -> None:
        try:
            await upload_missing(self._local, self._offsite)
            self.damaged = ""
        except CorruptError as error:
            self.damaged = str(error)

    async def _copy(self, name: SegmentName) -> None:
        """The line's beginning first: without it the segments could not be restored."""
        line = line_key(name.stream, name.line)
        try:
            if line not in self._lines:
                await self._copier.copy(line)
                self._lines.add(line)
            await self._copier.copy(name.key)
            await self._offsite.write_head(name)
            self._on_upload()
        except FileNotFoundError:
            _log.info("upload.pruned_meanwhile", key=name.key)
        except CorruptError as error:
            self.damaged = str(error)
            _log.error("upload.damaged_here", file=error.key, reason=str(error))


def _folder(key: str) -> str:
    return key.rpartition("/")[0] + "/"


def _order(found: tuple[Entry, bool]) -> tuple[int, int, str]:
    key = found[0].key
    name = key.rpartition("/")[2]
    place = next(n for n, prefix in enumerate(PREFIXES) if key.startswith(prefix))
    return (place, {MANIFEST: 1}.get(name, 0), key)
