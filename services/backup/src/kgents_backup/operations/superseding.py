"""Segments that a longer one accounts for whole: a merge left them behind."""

from __future__ import annotations

from kgents_backup.model.catalogue import LineFiles
from kgents_backup.model.keys import SegmentName


def superseded(files: LineFiles) -> list[SegmentName]:
    """Segments that a longer one accounts for whole."""
    found: list[SegmentName] = []
    reach = 0
    for name in sorted(files.segments, key=lambda s: (s.first, -s.last)):
        if name.last <= reach:
            found.append(name)
        reach = max(reach, name.last)
    return found
