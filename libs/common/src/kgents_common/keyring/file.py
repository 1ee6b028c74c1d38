"""The keyring's file: read whole, changed under a lock, replaced in one step; it knows no key's meaning.

The file is JSON: `{"version": 2, "keys": [...], "wide_keys": [...]}`. Version 1 had `keys` alone, and is read
as it is. Keys of several tenants have a list of their own: a release that knows version 1 alone does not see
them, where it would take such a key for one tenant's.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from kgents_common.errors import ConfigurationError
from kgents_common.keyring.records import KeyRecord, check

VERSION = 2
Stamp = tuple[int, int, int, int]

_MODE = 0o600
_TRIES = 20


class _Document(msgspec.Struct):
    keys: list[KeyRecord]
    wide_keys: list[KeyRecord] = []
    version: int = 1


def load(path: Path) -> list[KeyRecord]:
    """The records of a keyring file.

    Raises:
        ConfigurationError: The file is missing, is not JSON of this shape, or names a wrong tenant or scope.
    """
    return read(path)[0]


def read(path: Path) -> tuple[list[KeyRecord], Stamp]:
    """The records, and the stamp of the very file they were read from.

    Raises:
        ConfigurationError: As `load`.
    """
    try:
        content, stamp = _whole(path)
        document = msgspec.json.decode(content, type=_Document)
    except OSError as error:
        raise ConfigurationError(
            f"the keyring {path} cannot be read: {error.strerror}",
            hint="make one: kgents-api keys create --tenant <tenant> --scopes <scope>...",
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the keyring {path} is not valid: {error}") from error
    if not 1 <= document.version <= VERSION:
        raise ConfigurationError(f"the keyring {path} is of version {document.version}: a newer release's")
    records = [*document.keys, *document.wide_keys]
    for record in records:
        check(record)
    return records, stamp


def stamp_of(path: Path) -> Stamp:
    """What changes when the file does.

    Raises:
        OSError: It is not there.
    """
    return _stamp(path.stat())


def write(path: Path, records: Iterable[KeyRecord]) -> None:
    """Replace the file in one step. A new one is its owner's alone; an old one keeps its owner and mode.

    Raises:
        ConfigurationError: It would change owner: who may not give it back must not write it.
    """
    target = path.resolve()  # a link stays a link
    target.parent.mkdir(parents=True, exist_ok=True)
    known = list(records)
    document = _Document(
        [r for r in known if not r.is_wide], [r for r in known if r.is_wide], version=VERSION
    )
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=target.name)
    try:
        with os.fdopen(handle, "wb") as file:
            _keep_owner(target, file.fileno())
            file.write(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    directory = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # else a revoked key is back after a power cut
    finally:
        os.close(directory)


@contextmanager
def edit(path: Path) -> Iterator[list[KeyRecord]]:
    """The records to change, alone: another's change waits until this one is written.

    The lock is a file of its own beside the keyring, as the keyring itself is replaced. Nothing is written
    where the block raises.

    Raises:
        ConfigurationError: As `load` (but for a file that is not there yet) and `write`.
    """
    target = path.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(target.with_name(target.name + ".lock"), os.O_RDWR | os.O_CREAT, _MODE)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        records = load(path) if path.exists() else []
        yield records
        write(path, records)
    finally:
        os.close(lock)


def _whole(path: Path) -> tuple[bytes, Stamp]:
    """The content with its own stamp: one file, that nobody wrote into meanwhile."""
    for _ in range(_TRIES):
        with path.open("rb") as file:
            before = _stamp(os.fstat(file.fileno()))
            content = file.read()
            if _stamp(os.fstat(file.fileno())) == before:
                return content, before
    raise ConfigurationError(f"the keyring {path} changes while it is read")


def _stamp(status: os.stat_result) -> Stamp:
    return status.st_mtime_ns, status.st_size, status.st_ino, status.st_ctime_ns


def _keep_owner(target: Path, handle: int) -> None:
    try:
        known = target.stat()
    except FileNotFoundError:
        os.fchmod(handle, _MODE)
        return
    own = os.fstat(handle)
    if (known.st_uid, known.st_gid) != (own.st_uid, own.st_gid):
        try:
            os.fchown(handle, known.st_uid, known.st_gid)
        except PermissionError as error:
            raise ConfigurationError(
                f"the keyring {target} belongs to another user, who would lose it",
                hint=f"run this as user {known.st_uid}",
            ) from error
    os.fchmod(handle, known.st_mode & 0o7777)
