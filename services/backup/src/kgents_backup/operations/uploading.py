"""Copying the local store to the off-site one: what is missing there, each snapshot's manifest last."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta

import structlog

from kgents_backup.model.catalogue import LineFiles
from kgents_backup.model.faults import StoreError
from kgents_backup.model.keys import MANIFEST, VERIFIED, SegmentName
from kgents_backup.model.ports import Entry, NoProgress, Progress, Store
from kgents_common.crash import CrashPoints
from kgents_common.retry import Patience

PREFIXES = ("lines/", "segments/", "snapshots/", "databases/")

_log = structlog.get_logger()


async def upload_missing(
    local: Store,
    offsite: Store,
    *,
    progress: Progress | None = None,
    crash: CrashPoints | None = None,
) -> int:
    """Copy every file that the off-site store lacks; how many.

    A file that is there with another size was cut by a service that is not atomic: it is written again.
    Snapshots without a manifest are not copied: they are unfinished.

    Raises:
        StoreError: One of the stores failed; what was copied stays, the rest comes with the next call.
    """
    progress = progress or NoProgress()
    crash = crash or CrashPoints(None)
    missing: list[Entry] = []
    for prefix in PREFIXES:
        there = {e.key: e.size for e in await offsite.list(prefix)}
        here = list(await local.list(prefix))
        finished = {e.key.removesuffix(MANIFEST) for e in here if e.key.endswith("/" + MANIFEST)}
        missing += [
            e
            for e in here
            if there.get(e.key) != e.size
            and (prefix not in ("snapshots/", "databases/") or _folder(e.key) in finished)
        ]
    progress.begin("upload", sum(e.size for e in missing), "bytes")
    try:
        for entry in sorted(missing, key=_order):
            if entry.key.endswith("/" + MANIFEST):
                crash.reach("upload.before_manifest")
            try:
                await offsite.put(entry.key, await local.get(entry.key))
            except FileNotFoundError:  # pruned meanwhile
                continue
            crash.reach("upload.after_file")
            progress.advance(entry.size)
    finally:
        progress.end()
    return len(missing)


class SegmentUploader:
    """Copies segments as they are stored, in order, retrying until the off-site store takes them.

    Args:
        on_upload: Told after each success.
    """

    def __init__(
        self,
        local: Store,
        offsite: Store,
        *,
        on_upload: Callable[[], None] = lambda: None,
        longest_wait_seconds: float = 15,
    ) -> None:
        self._local = local
        self._offsite = offsite
        self._on_upload = on_upload
        self._patience = Patience(
            "backup.upload", first=timedelta(seconds=1), longest=timedelta(seconds=longest_wait_seconds)
        )
        self._wanted = asyncio.Event()
        self._queue: dict[str, None] = {}
        self.last_error: str = ""

    @property
    def waiting(self) -> int:
        """Segments that are not off-site yet, as far as this process knows."""
        return len(self._queue)

    def add(self, name: SegmentName) -> None:
        """Have a stored segment copied."""
        self._queue[name.key] = None
        self._wanted.set()

    async def run(self) -> None:
        """Begin with everything that is missing, then follow; for ever."""
        is_complete = False
        while True:
            try:
                if not is_complete:
                    await upload_missing(self._local, self._offsite)
                    is_complete = True
                    self._on_upload()
                while self._queue:
                    key = next(iter(self._queue))
                    try:
                        await self._offsite.put(key, await self._local.get(key))
                        self._on_upload()
                    except FileNotFoundError:
                        _log.info("upload.pruned_meanwhile", key=key)
                    self._queue.pop(key, None)
                self.last_error = ""
                self._patience.progressed()
                self._wanted.clear()
                await self._wanted.wait()
            except StoreError as error:
                self.last_error = str(error)
                await self._patience.wait(error)


def superseded(files: LineFiles) -> list[SegmentName]:
    """Segments that a longer one accounts for whole."""
    found: list[SegmentName] = []
    reach = 0
    for name in sorted(files.segments, key=lambda s: (s.first, -s.last)):
        if name.last <= reach:
            found.append(name)
        reach = max(reach, name.last)
    return found


def _folder(key: str) -> str:
    return key.rpartition("/")[0] + "/"


def _order(entry: Entry) -> tuple[int, str]:
    name = entry.key.rpartition("/")[2]
    return ({MANIFEST: 1, VERIFIED: 2}.get(name, 0), entry.key)
