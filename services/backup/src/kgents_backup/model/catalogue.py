"""What a store holds of one stream, ordered by line; built from a listing, it reads no file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from kgents_backup.model.keys import HEADS, MANIFEST, VERIFIED, Line, SegmentName, SnapshotName, parse_head
from kgents_backup.model.ports import Entry


@dataclass(slots=True)
class LineFiles:
    """One line's snapshots and segments, oldest first; only snapshots that have a manifest.

    Attributes:
        promised: The sequence to which the line was archived, as its head says; 0 where none is stored.
    """

    line: Line
    snapshots: list[SnapshotName] = field(default_factory=list)
    verified: set[SnapshotName] = field(default_factory=set)
    segments: list[SegmentName] = field(default_factory=list)
    promised: int = 0

    @property
    def archived_to(self) -> int:
        """The last sequence that segments account for; 0 for none."""
        return max((s.last for s in self.segments), default=0)

    @property
    def head(self) -> tuple[int, int] | None:
        """The last known sequence and its time in Unix milliseconds."""
        ends = [(s.last, s.last_ms) for s in self.segments] + [(s.last, s.last_ms) for s in self.snapshots]
        return max(ends, default=None)

    @property
    def lost_from(self) -> int | None:
        """The first sequence that was archived, and of which nothing is stored any more; None for none."""
        reached = self.head[0] if self.head else 0
        return reached + 1 if self.promised > reached else None

    def covering(self, start: int) -> list[SegmentName]:
        """The shortest run of segments that accounts for everything from `start` on, without a hole.

        Where segments overlap (one was merged from others), the longest wins.
        """
        chain: list[SegmentName] = []
        position = start
        for segment in sorted(self.segments, key=lambda s: (s.first, -s.last)):
            if segment.last < position:
                continue
            if segment.first > position:
                break
            chain.append(segment)
            position = segment.last + 1
        return chain


@dataclass(slots=True)
class Catalogue:
    """One stream's lines, oldest first, and the files that belong to no finished snapshot."""

    stream: str
    lines: dict[Line, LineFiles] = field(default_factory=dict)
    unfinished: list[str] = field(default_factory=list)

    @property
    def newest(self) -> LineFiles | None:
        """The newest line."""
        return self.lines[max(self.lines)] if self.lines else None

    @property
    def snapshots(self) -> Sequence[SnapshotName]:
        """Every finished snapshot, by line and by what it holds."""
        found = [s for files in self.lines.values() for s in files.snapshots]
        return sorted(found, key=lambda s: (s.line, s.last, s.at))

    def of(self, line: Line) -> LineFiles:
        """A line's files; made empty where there are none."""
        return self.lines.setdefault(line, LineFiles(line))


def build(stream: str, entries: Iterable[Entry]) -> Catalogue:
    """The catalogue of a stream from a listing of `snapshots/`, `segments/` and `lines/`."""
    catalogue = Catalogue(stream)
    files: dict[SnapshotName, list[str]] = {}
    for entry in entries:
        segment = SegmentName.parse(entry.key, entry.size)
        if segment is not None and segment.stream == stream:
            catalogue.of(segment.line).segments.append(segment)
        snapshot = SnapshotName.parse(entry.key)
        if snapshot is not None and snapshot[0].stream == stream:
            files.setdefault(snapshot[0], []).append(snapshot[1])
        head = parse_head(entry.key)
        if head is not None and entry.key.startswith(f"{HEADS}{stream}/"):
            files_of = catalogue.of(head[0])
            files_of.promised = max(files_of.promised, head[1])
        if entry.key.startswith(f"lines/{stream}/"):
            line = Line.parse(entry.key.rpartition("/")[2].removesuffix(".json"))
            if line is not None:
                catalogue.of(line)
    for name, found in sorted(files.items()):
        if MANIFEST in found:
            catalogue.of(name.line).snapshots.append(name)
            if VERIFIED in found:
                catalogue.of(name.line).verified.add(name)
        else:
            catalogue.unfinished += [name.prefix + file for file in found]
    for line_files in catalogue.lines.values():
        line_files.segments.sort()
        # By what they hold: the clock of whoever took them may have been wrong.
        line_files.snapshots.sort(key=lambda s: (s.last, s.at))
    catalogue.lines = dict(sorted(catalogue.lines.items()))
    return catalogue
