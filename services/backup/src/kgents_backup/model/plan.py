"""The restore plan: which snapshot and which segments lead to a moment or a sequence; it reads no file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from kgents_backup.model import moments
from kgents_backup.model.catalogue import Catalogue, LineFiles
from kgents_backup.model.faults import UnrecoverableError
from kgents_backup.model.keys import Line, SegmentName, SnapshotName

# Bytes a second, measured on two cores: a physical restore, and messages published one by one.
PHYSICAL_RATE = 80_000_000
REPLAY_RATE = 8_000_000
# Messages a second that are read back and compared.
READ_RATE = 30_000
# From so many on a server of our own is filled, and its files are brought: below, its start takes longer.
FEWEST_BY_FILES = 10_000
# Messages a second that a server which syncs nothing takes, from a snapshot and one by one.
UNSYNCED_RATE = 60_000
UNSYNCED_REPLAY_RATE = 12_000


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a server stores small messages, and whether it restores a snapshot one by one.

    Attributes:
        is_by_files: Whether many messages are filled in elsewhere and brought as files.
        speed: How fast this machine computes now, against the one that the rates were measured on.
    """

    messages_per_second: float
    is_by_message: bool
    is_by_files: bool = False
    speed: float = 1.0


@dataclass(frozen=True, slots=True)
class Until:
    """How far to restore: to the end (neither), to the last message not after `time`, or to `sequence`."""

    time: datetime | None = None
    sequence: int | None = None

    @classmethod
    def parse(cls, text: str | None) -> Until:
        """`latest` or None, a sequence, or an RFC 3339 time with its offset.

        Raises:
            ValueError: It is none of these.
        """
        if text is None or text == "latest":
            return cls()
        if text.isdigit():
            return cls(sequence=int(text))
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            raise ValueError(f"{text} has no offset: write 2026-01-31T12:00:00Z")
        return cls(time=moment)

    def includes(self, sequence: int, time: int) -> bool:
        """Whether a message (its time in Unix nanoseconds) is wanted."""
        if self.sequence is not None:
            return sequence <= self.sequence
        return self.time is None or time <= moments.of(self.time)

    def __str__(self) -> str:
        if self.sequence is not None:
            return f"sequence {self.sequence}"
        return self.time.isoformat() if self.time else "the end"


@dataclass(frozen=True, slots=True)
class RestorePlan:
    """What a restore does, in order.

    Attributes:
        snapshot: The base; None where segments reach back to the line's beginning.
        segments: The tail: everything after the snapshot, without a hole.
        snapshot_bytes: What the base takes in the store.
        hole: The first sequence that no segment accounts for although later ones are stored; None where
            nothing is missing.
    """

    stream: str
    line: Line
    until: Until
    snapshot: SnapshotName | None
    segments: tuple[SegmentName, ...]
    snapshot_bytes: int
    hole: int | None = None

    @property
    def reaches(self) -> int:
        """The last sequence the files account for."""
        if self.segments:
            return self.segments[-1].last
        return self.snapshot.last if self.snapshot else 0

    @property
    def segment_bytes(self) -> int:
        """Bytes of segments to read."""
        return sum(s.size for s in self.segments)

    @property
    def tail_messages(self) -> int:
        """At most how many messages the segments bring: they account for gaps, too."""
        after = self.snapshot.last if self.snapshot else 0
        return sum(s.last - max(s.first - 1, after) for s in self.segments)

    def is_by_files(self, pace: Pace, messages: int) -> bool:
        """Whether it is filled in elsewhere and brought as files; `messages` as in `seconds`."""
        return pace.is_by_files and messages + self.tail_messages >= FEWEST_BY_FILES

    def seconds(self, pace: Pace, messages: int) -> float:
        """About how long it takes: what is stored message by message goes at the server's pace.

        Args:
            messages: How many the snapshot holds.
        """
        base = self.snapshot_bytes / PHYSICAL_RATE
        tail = self.tail_messages
        compared = (messages + tail) / READ_RATE
        if self.is_by_files(pace, messages):
            by_message = messages / UNSYNCED_RATE if pace.is_by_message else 0.0
            replay = max(4 * self.segment_bytes / REPLAY_RATE, tail / UNSYNCED_REPLAY_RATE)
            shipped = base + 4 * self.segment_bytes / PHYSICAL_RATE
            return (3 + max(base, by_message) + replay + shipped + compared) / pace.speed
        base, replay = base / pace.speed, 4 * self.segment_bytes / REPLAY_RATE / pace.speed
        if pace.is_by_message:
            base = max(base, messages / pace.messages_per_second)
        return max(replay, tail / pace.messages_per_second) + base + (1 + compared) / pace.speed


def choose_line(catalogue: Catalogue, until: Until, opened_at: Mapping[Line, datetime]) -> LineFiles:
    """The line that was being written at the wanted time; the newest where no time is wanted.

    Raises:
        UnrecoverableError: Nothing is stored of the stream.
    """
    filled = [f for f in catalogue.lines.values() if f.snapshots or f.segments]
    if not filled:
        raise UnrecoverableError(
            f"nothing is stored of {catalogue.stream}", hint="look into the other store: --store offsite"
        )
    if until.time is None:
        return filled[-1]
    begun = [f for f in filled if opened_at.get(f.line, until.time) <= until.time]
    return begun[-1] if begun else filled[0]


def plan(
    files: LineFiles,
    stream: str,
    until: Until,
    *,
    snapshot_bytes: Mapping[SnapshotName, int] | None = None,
    without: frozenset[SnapshotName] = frozenset(),
) -> RestorePlan:
    """How to reach `until` within one line.

    Args:
        snapshot_bytes: The stored size of each snapshot, for the estimate.
        without: Snapshots not to use, e.g. because they are damaged.

    Raises:
        UnrecoverableError: No snapshot is old enough and no unbroken run of segments leads there.
    """
    usable = [s for s in files.snapshots if s not in without and _is_before(s, until)]
    base = usable[-1] if usable else None
    start = base.last + 1 if base else min((s.first for s in files.segments), default=1)
    chain = [s for s in files.covering(start) if _has_wanted(s, until)]
    if base is None and not chain:
        oldest = min((s.taken_at for s in files.snapshots), default=None)
        raise UnrecoverableError(
            f"{stream} cannot be restored to {until}: no snapshot or segment is that old",
            hint=f"the oldest usable moment is about {oldest.isoformat()}" if oldest else "see `list`",
        )
    if until.sequence is not None:
        reached = chain[-1].last if chain else (base.last if base else 0)
        if reached < until.sequence:
            raise UnrecoverableError(
                f"{stream} is stored up to sequence {reached} on line {files.line}, not {until.sequence}",
                hint="restore without --to for the newest stored state",
            )
    return RestorePlan(
        stream=stream,
        line=files.line,
        until=until,
        snapshot=base,
        segments=tuple(chain),
        snapshot_bytes=(snapshot_bytes or {}).get(base, 0) if base else 0,
        hole=_hole(files, chain[-1].last if chain else start - 1, until),
    )


def _hole(files: LineFiles, reached: int, until: Until) -> int | None:
    later = any(s.first > reached + 1 and _has_wanted(s, until) for s in files.segments)
    return reached + 1 if later else None


def _is_before(snapshot: SnapshotName, until: Until) -> bool:
    if until.sequence is not None:
        return snapshot.last <= until.sequence
    if until.time is not None and snapshot.last_ms == 0:  # of a stream that never held a message
        return snapshot.taken_at <= until.time
    # A name holds milliseconds, rounded down: take the whole millisecond as after the moment.
    return until.time is None or (snapshot.last_ms + 1) * 1_000_000 <= moments.of(until.time) + 1


def _has_wanted(segment: SegmentName, until: Until) -> bool:
    if until.sequence is not None:
        return segment.first <= until.sequence
    return until.time is None or segment.first_ms * 1_000_000 <= moments.of(until.time)
