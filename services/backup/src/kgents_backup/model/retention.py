"""What may be deleted: nothing that a restore within the kept days needs, never the last good one; no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from kgents_backup.model import moments
from kgents_backup.model.catalogue import Catalogue, LineFiles
from kgents_backup.model.keys import Line, SegmentName, SnapshotName


@dataclass(frozen=True, slots=True)
class Pruning:
    """What to delete, and why the rest stays.

    Attributes:
        lines: Lines of which nothing is left.
    """

    snapshots: tuple[SnapshotName, ...]
    segments: tuple[SegmentName, ...]
    unfinished: tuple[str, ...]
    lines: tuple[Line, ...]

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.snapshots or self.segments or self.unfinished or self.lines)


def prune(catalogue: Catalogue, *, now: datetime, keep: timedelta) -> Pruning:
    """What is not needed any more.

    Kept are: what was taken within `keep`; on every line the newest snapshot before that (a restore to the
    first kept moment starts from it) and the segments after it; of each stream the newest snapshot that was
    read back and found good, and the newest of all. Segments below a kept snapshot go only with their age,
    so that a damaged snapshot can be bridged from the one before it.
    """
    horizon = now - keep
    # A bad new snapshot must not push out an old good one.
    good = [s for files in catalogue.lines.values() for s in files.verified]
    precious = {max(good, key=lambda s: (s.line, s.last, s.at))} if good else set(catalogue.snapshots)
    if catalogue.snapshots:
        precious.add(catalogue.snapshots[-1])
    newest = max((line for line, f in catalogue.lines.items() if f.snapshots or f.segments), default=None)
    snapshots: list[SnapshotName] = []
    segments: list[SegmentName] = []
    lines: list[Line] = []
    for line, files in catalogue.lines.items():
        old = _old(files, horizon, is_newest=line == newest)
        drop = [s for s in old[0] if s not in precious]
        kept = [s for s in files.snapshots if s not in drop]
        # Only a snapshot that was found good stands for what it covers.
        floor = min((s.last for s in kept if s in files.verified), default=None)
        # A history that is over goes as a whole: what is left of half of one looks like damage.
        is_over = line != newest and not kept and len(old[1]) == len(files.segments)
        drop_segments = [s for s in old[1] if is_over or (floor is not None and s.last <= floor)]
        snapshots += drop
        segments += drop_segments
        if line != newest and not kept and len(drop_segments) == len(files.segments):
            lines.append(line)
    return Pruning(tuple(snapshots), tuple(segments), tuple(catalogue.unfinished), tuple(lines))


def _old(
    files: LineFiles, horizon: datetime, *, is_newest: bool
) -> tuple[list[SnapshotName], list[SegmentName]]:
    edge = moments.of(horizon) // 1_000_000
    before = [s for s in files.snapshots if s.taken_at < horizon]
    # The newest before the horizon is where a restore to the horizon starts, while the line goes on after it.
    goes_on = (
        is_newest or any(s.last_ms >= edge for s in files.segments) or len(before) < len(files.snapshots)
    )
    snapshots = before[:-1] if goes_on else before
    has_base = bool(files.snapshots) or not is_newest
    segments = [s for s in files.segments if s.last_ms < edge] if has_base else []
    if goes_on and not files.snapshots:
        segments = []
    return snapshots, segments
