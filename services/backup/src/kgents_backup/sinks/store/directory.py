"""A store in a directory (the PVC): temporary file, fsync, rename, fsync of the directory; no cleverness.

Sources: rename(2), fsync(2); "All File Systems Are Not Created Equal" (OSDI 2014) on directories.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from kgents_backup.model.faults import StoreError
from kgents_backup.model.ports import Entry, Versioned

TEMPORARY = ".unfinished"

Result = TypeVar("Result")


class DirectoryStore:
    """Files below one directory, each written whole or not at all.

    `replace` is safe between processes on one machine (flock); a directory shared by several machines needs
    a file system whose flock reaches across them.
    """

    def __init__(self, directory: Path, *, name: str = "local") -> None:
        self.name = name
        self.directory = directory

    async def put(self, key: str, data: bytes) -> None:
        """See `Store.put`."""
        await self._run(key, lambda: self._write(key, data, os.replace))

    async def create(self, key: str, data: bytes) -> bool:
        """See `Store.create`."""

        def link() -> bool:
            try:
                self._write(key, data, os.link)
            except FileExistsError:
                return False
            return True

        return await self._run(key, link)

    async def replace(self, key: str, data: bytes, version: str) -> bool:
        """See `Store.replace`."""

        def swap() -> bool:
            with self._exclusively():
                try:
                    current = self._path(key).read_bytes()
                except FileNotFoundError:
                    return False
                if _version(current) != version:
                    return False
                self._write(key, data, os.replace)
                return True

        return await self._run(key, swap)

    async def get(self, key: str) -> bytes:
        """See `Store.get`."""
        return await self._run(key, self._path(key).read_bytes)

    async def get_versioned(self, key: str) -> Versioned:
        """See `Store.get_versioned`."""
        data = await self.get(key)
        return Versioned(data, _version(data))

    async def list(self, prefix: str) -> Sequence[Entry]:
        """See `Store.list`."""
        return await self._run(prefix, lambda: sorted(self._walk(prefix), key=lambda e: e.key))

    async def delete(self, key: str) -> None:
        """See `Store.delete`."""

        def remove() -> None:
            path = self._path(key)
            path.unlink(missing_ok=True)
            for parent in path.parents:
                if parent == self.directory:
                    break
                try:
                    parent.rmdir()
                except OSError:  # not empty, or gone
                    break

        await self._run(key, remove)

    def discard_unfinished(self, *, older_than: datetime) -> int:
        """Remove what writers that died left behind; how many files."""
        edge = older_than.timestamp()
        left = [p for p in (self.directory / TEMPORARY).glob("*") if p.stat().st_mtime < edge]
        for path in left:
            path.unlink(missing_ok=True)
        return len(left)

    def _path(self, key: str) -> Path:
        return self.directory / key

    def _walk(self, prefix: str) -> Iterator[Entry]:
        top = self.directory / prefix
        for folder, _, names in os.walk(top):
            if TEMPORARY in Path(folder).relative_to(self.directory).parts:
                continue
            for name in names:
                path = Path(folder) / name
                with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                    found = path.stat()
                    key = path.relative_to(self.directory).as_posix()
                    yield Entry(key, found.st_size, datetime.fromtimestamp(found.st_mtime, UTC))

    def _write(self, key: str, data: bytes, commit: Callable[[str, Path], None]) -> None:
        path = self._path(key)
        unfinished = self.directory / TEMPORARY
        for _ in range(3):  # a directory may be removed by a `delete` at the same moment
            unfinished.mkdir(parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(dir=unfinished)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                _make_durably(path.parent, self.directory)
                commit(temporary, path)
                _sync(path.parent)
            except FileNotFoundError:
                continue
            finally:
                Path(temporary).unlink(missing_ok=True)
            return
        raise StoreError(f"{self.name}: {key} cannot be written: its directory keeps vanishing")

    @contextmanager
    def _exclusively(self) -> Iterator[None]:
        unfinished = self.directory / TEMPORARY
        unfinished.mkdir(parents=True, exist_ok=True)
        with (self.directory / ".lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    async def _run(self, key: str, work: Callable[[], Result]) -> Result:
        try:
            return await asyncio.to_thread(work)
        except FileNotFoundError:
            raise
        except OSError as error:
            hint = (
                "free space or add some" if error.errno in (28, 122) else "check the directory's permissions"
            )
            raise StoreError(f"{self.name}: {key}: {error.strerror or error}", hint=hint) from error


def _make_durably(folder: Path, top: Path) -> None:
    """Make a directory so that it is still there after a power cut."""
    missing = [p for p in (folder, *folder.parents) if p.is_relative_to(top) and not p.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        _sync(path.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _version(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
