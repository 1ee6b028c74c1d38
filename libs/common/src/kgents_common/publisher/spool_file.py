"""The spool on disk: messages in one SQLite file, in the order they came; every call blocks and syncs.

WAL mode with `synchronous=FULL`: a commit returns once the log is synced (SQLite, "PRAGMA synchronous"), so
what was committed survives the process and the machine. One process at a time: a lock beside the file.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from kgents_common.errors import ConfigurationError, NotDurableError
from kgents_common.publisher.pipeline import Message

# What a row costs beside its texts: keys, the index, the share of a page left empty.
ROW_BYTES = 256

_NAME = "spool.sqlite3"
_SCHEMA = """
create table if not exists message (
    n integer primary key autoincrement,
    message_id text not null unique,
    subject text not null,
    headers text not null,
    body blob not null,
    bytes integer not null,
    kept_at real not null,
    sent_at real,
    refused text
) strict
"""
_HEADERS = msgspec.json.Decoder(dict[str, str])


@dataclass(frozen=True, slots=True)
class Kept:
    """A message to keep.

    Attributes:
        sent_at: When it was sent without an answer, so that the stream may hold it; None where it never left.
    """

    message: Message
    sent_at: datetime | None = None

    @property
    def bytes(self) -> int:
        """What it takes of the spool."""
        message = self.message
        headers = sum(len(name) + len(value) for name, value in message.headers.items())
        return ROW_BYTES + len(message.subject) + headers + len(message.body)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A message of the spool and its number, by which it is removed."""

    n: int
    message: Message
    sent_at: datetime | None
    bytes: int


@dataclass(frozen=True, slots=True)
class Totals:
    """What a spool holds: messages that wait, their bytes, and messages that the stream refuses for good."""

    waiting: int
    bytes: int
    refused: int


class SpoolFile:
    """One open spool."""

    def __init__(self, directory: Path) -> None:
        """Open or make it, and lock it.

        Raises:
            ConfigurationError: Another process has it, or it cannot be used.
        """
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _unusable(directory, error) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise ConfigurationError(
                f"the spool {directory} is another process's",
                hint="give each process a directory of its own, or wait until the other has ended",
            ) from error
        try:
            self._database = _open(directory / _NAME)
            _sync_directory(directory)  # the file's name, too, must survive the machine
        except (sqlite3.Error, OSError) as error:
            os.close(self._lock)
            raise _unusable(directory, error) from error

    def close(self) -> None:
        """Close it and let others have it."""
        self._database.close()
        os.close(self._lock)

    def totals(self) -> Totals:
        """What it holds."""
        with _told():
            row = self._database.execute(
                "select count(*) filter (where refused is null), coalesce(sum(bytes), 0),"
                " count(*) filter (where refused is not null) from message"
            ).fetchone()
        return Totals(*row)

    def append(self, groups: Sequence[Sequence[Kept]]) -> list[list[bool]]:
        """Keep all messages of all groups, in one transaction; for each, whether it was not there yet.

        Raises:
            NotDurableError: None is kept: the disk is full or broken.
        """
        now = datetime.now(UTC).timestamp()
        with _told(), self._transaction():
            return [[self._insert(kept, now) for kept in group] for group in groups]

    def first(self, limit: int, max_bytes: int) -> list[Waiting]:
        """The oldest messages that wait: at most so many, and no more once they are so large."""
        found: list[Waiting] = []
        left = max_bytes
        with _told():
            rows = self._database.execute(
                "select n, subject, body, message_id, headers, sent_at, bytes from message"
                " where refused is null order by n limit ?",
                (limit,),
            )
            for n, subject, body, message_id, headers, sent_at, size in rows:
                sent = None if sent_at is None else datetime.fromtimestamp(sent_at, UTC)
                message = Message(subject, body, message_id, _HEADERS.decode(headers))
                found.append(Waiting(n, message, sent, size))
                left -= size
                if left <= 0:
                    break
        return found

    def note_sent(self, numbers: Sequence[int], at: datetime) -> None:
        """Remember, before they are sent, that the stream may hold these from now on."""
        with _told(), self._transaction():
            self._database.executemany(
                "update message set sent_at = ? where n = ? and sent_at is null",
                [(at.timestamp(), n) for n in numbers],
            )

    def remove(self, numbers: Sequence[int]) -> None:
        """Forget messages that the stream holds."""
        with _told(), self._transaction():
            self._database.executemany("delete from message where n = ?", [(n,) for n in numbers])

    def refuse(self, number: int, reason: str) -> None:
        """Set aside, and keep, a message that the stream can never take."""
        with _told(), self._transaction():
            self._database.execute("update message set refused = ? where n = ?", (reason, number))

    def shrink(self) -> None:
        """Give the disk back what an empty spool no longer needs."""
        with _told():
            self._database.execute("pragma incremental_vacuum").fetchall()
            self._database.execute("pragma wal_checkpoint(truncate)").fetchall()

    def _insert(self, kept: Kept, now: float) -> bool:
        message = kept.message
        cursor = self._database.execute(
            "insert into message (message_id, subject, headers, body, bytes, kept_at, sent_at)"
            " values (?, ?, ?, ?, ?, ?, ?) on conflict (message_id) do nothing",
            (
                message.message_id,
                message.subject,
                msgspec.json.encode(message.headers).decode(),
                message.body,
                kept.bytes,
                now,
                kept.sent_at.timestamp() if kept.sent_at is not None else None,
            ),
        )
        return cursor.rowcount == 1

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("begin immediate")
        try:
            yield
            self._database.execute("commit")
        except BaseException:
            if self._database.in_transaction:
                self._database.execute("rollback")
            raise


def _open(path: Path) -> sqlite3.Connection:
    # Calls come one at a time, but not always from the thread that opened it.
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        database.execute("pragma auto_vacuum = incremental")
        database.execute("pragma journal_mode = wal").fetchone()
        database.execute("pragma synchronous = full")
        database.execute("pragma fullfsync = on")  # macOS: fsync alone does not reach the disk there
        database.execute(_SCHEMA)
    except BaseException:
        database.close()
        raise
    return database


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _told() -> Iterator[None]:
    """SQLite's errors as ours."""
    try:
        yield
    except sqlite3.Error as error:
        raise NotDurableError(f"spool: {error}") from error


def _unusable(directory: Path, error: Exception) -> ConfigurationError:
    return ConfigurationError(
        f"the spool {directory} cannot be used: {error}",
        hint="it must be a directory this process may write; a damaged spool.sqlite3 can be moved away and"
        " read with SQLite",
    )
