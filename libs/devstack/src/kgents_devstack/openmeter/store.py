"""The events a stand-in holds, by column and in memory, and which were seen before; it validates nothing.

Deduplication is OpenMeter's: by source and id joined with a dash (`openmeter/dedupe/dedupe.go`), which makes
source `a` with id `b-c` and source `a-b` with id `c` one event; the first wins and nobody is told.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from kgents_devstack.openmeter.clocktext import whole_seconds
from kgents_devstack.openmeter.event import Event

_ROW_ENCODER = msgspec.json.Encoder()


class StoredEvent(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One stored event; times in Unix seconds, `time` whole, `ingested_at` in microseconds."""

    id: str
    source: str
    type: str
    subject: str
    time: int
    ingested_at: int
    data: bytes


class _JournalRow(msgspec.Struct, array_like=True, gc=False):
    id: str
    source: str
    type: str
    subject: str
    time: int
    ingested_at: int
    data: msgspec.Raw


@dataclass(slots=True)
class Outcome:
    """What became of a batch; a conflict is a duplicate with another payload, of which nobody is told."""

    stored: int = 0
    duplicates: int = 0
    conflicts: int = 0


class _Columns:
    """All rows; a row's number is its place in each column."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.sources: list[str] = []
        self.types: list[str] = []
        self.subjects: list[str] = []
        self.data: list[bytes] = []
        self.times = array("q")
        self.ingested = array("q")

    def event(self, row: int) -> StoredEvent:
        source = self.sources[row]
        return StoredEvent(
            self.keys[row][len(source) + 1 :],
            source,
            self.types[row],
            self.subjects[row],
            self.times[row],
            self.ingested[row],
            self.data[row],
        )


class EventStore:
    """What was ingested, in order.

    Args:
        dedupe_window_seconds: How long a key is remembered; None for ever.
        journal: A file each stored event is appended to and read back from, so that a killed stand-in comes
            back with what it had acknowledged.
    """

    def __init__(self, *, dedupe_window_seconds: float | None = None, journal: Path | None = None) -> None:
        self._window = None if dedupe_window_seconds is None else int(dedupe_window_seconds * 1_000_000)
        self._journal_path = journal
        self._journal: int | None = None
        self._order: list[int]
        self._forget()
        if journal is not None:
            self._recover(journal)
            self._journal = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def __len__(self) -> int:
        return len(self._columns.keys)

    @property
    def unique(self) -> int:
        """How many different keys were stored."""
        return len(self._latest)

    def by_source(self) -> dict[str, int]:
        """Stored events of each source."""
        return dict(self._by_source)

    def add(self, events: Sequence[Event], now: int) -> Outcome:
        """Store what was not seen within the window.

        Args:
            now: Unix microseconds; it is the time of events without one.
        """
        outcome = Outcome()
        lines: list[bytes] = []
        for event in events:
            key = f"{event.source}-{event.id}"
            seconds = now // 1_000_000 if event.time is None else whole_seconds(event.time)
            data = bytes(event.data)
            seen = self._latest.get(key)
            if seen is not None and (
                self._window is None or now - self._columns.ingested[seen] <= self._window
            ):
                outcome.duplicates += 1
                outcome.conflicts += not self._is_same(seen, event, seconds, data)
                continue
            stored = StoredEvent(event.id, event.source, event.type, event.subject, seconds, now, data)
            self._append(key, stored)
            outcome.stored += 1
            if self._journal is not None:
                row = _JournalRow(
                    event.id, event.source, event.type, event.subject, seconds, now, msgspec.Raw(data)
                )
                lines.append(_ROW_ENCODER.encode(row))
        if lines and self._journal is not None:
            os.write(self._journal, b"\n".join(lines) + b"\n")
        return outcome

    def clear(self) -> int:
        """Forget every event and every key; how many events there were."""
        count = len(self)
        self._forget()
        if self._journal is not None:
            os.ftruncate(self._journal, 0)
        return count

    def event(self, row: int) -> StoredEvent:
        """The event of a row."""
        return self._columns.event(row)

    def rows_of(self, event_type: str, subjects: Sequence[str] | None = None) -> Iterator[StoredEvent]:
        """Events of a type, of some subjects or all, as they came; none that comes later."""
        columns = self._columns
        parts = [
            list(rows)
            for (found_type, subject), rows in self._partitions.items()
            if found_type == event_type and (subjects is None or subject in subjects)
        ]
        rows = sorted(row for part in parts for row in part)
        return (columns.event(row) for row in rows)

    def rows_with_ids(self, ids: frozenset[str]) -> list[int]:
        """The rows that have one of the ids, whatever their source."""
        rows: list[int] = []
        for source in self._by_source:
            for event_id in ids:
                key = f"{source}-{event_id}"
                latest = self._latest.get(key)
                if latest is not None:
                    rows += [r for r in (*self._earlier.get(key, ()), latest) if self.event(r).id == event_id]
        return sorted(set(rows))

    def newest_first(self) -> Sequence[int]:
        """All rows by time, then id, both descending: the order of OpenMeter's listings."""
        if len(self._order) != len(self):
            event, times = self._columns.event, self._columns.times
            self._order = sorted(range(len(self)), key=lambda r: (times[r], event(r).id), reverse=True)
        return self._order

    def _forget(self) -> None:
        self._columns = _Columns()
        self._latest: dict[str, int] = {}
        self._earlier: dict[str, list[int]] = {}
        self._partitions: dict[tuple[str, str], array[int]] = {}
        self._by_source: dict[str, int] = {}
        self._names: dict[str, str] = {}
        self._order = []

    def _append(self, key: str, event: StoredEvent) -> None:
        columns, row = self._columns, len(self._columns.keys)
        one = self._names.setdefault  # one object for each name, not one for each event
        source, kind, subject = (one(n, n) for n in (event.source, event.type, event.subject))
        columns.keys.append(key)
        columns.sources.append(source)
        columns.types.append(kind)
        columns.subjects.append(subject)
        columns.data.append(event.data)
        columns.times.append(event.time)
        columns.ingested.append(event.ingested_at)
        before = self._latest.get(key)
        if before is not None:
            self._earlier.setdefault(key, []).append(before)
        self._latest[key] = row
        self._partitions.setdefault((kind, subject), array("q")).append(row)
        self._by_source[source] = self._by_source.get(source, 0) + 1

    def _is_same(self, row: int, event: Event, seconds: int, data: bytes) -> bool:
        columns = self._columns
        return (
            columns.data[row] == data
            and columns.types[row] == event.type
            and columns.subjects[row] == event.subject
            and (event.time is None or columns.times[row] == seconds)
        )

    def _recover(self, journal: Path) -> None:
        if not journal.exists():
            return
        decoder = msgspec.json.Decoder(_JournalRow)
        whole = 0
        with journal.open("rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):  # killed in the middle of a write: it was not acknowledged
                    break
                row = decoder.decode(line)
                data = bytes(row.data)
                event = StoredEvent(
                    row.id, row.source, row.type, row.subject, row.time, row.ingested_at, data
                )
                self._append(f"{row.source}-{row.id}", event)
                whole += len(line)
        os.truncate(journal, whole)
