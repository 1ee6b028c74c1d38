"""Retention lets go what no restore within the kept days needs, and never the last good snapshot."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from kgents_backup.model.catalogue import Catalogue, LineFiles
from kgents_backup.model.keys import Line, SegmentName, SnapshotName, stamp
from kgents_backup.model.plan import Until, plan
from kgents_backup.model.retention import prune

STREAM = "AGENTESE"
LINE = Line("20260101T000000000000Z")
NOW = datetime(2026, 3, 1, 2, tzinfo=UTC)
WEEK = timedelta(days=7)
PER_DAY = 100


def history(days: int, *, verified: bool = True, stopped_before: int = 0) -> Catalogue:
    """A snapshot a day at 02:00 and a segment an hour, up to `stopped_before` days ago."""
    files = LineFiles(LINE)
    first = NOW - timedelta(days=days)
    for day in range(days - stopped_before):
        at = first + timedelta(days=day)
        last = day * PER_DAY
        ms = int(at.timestamp() * 1000)
        if last:
            name = SnapshotName(STREAM, LINE, stamp(at), last, ms - 1)
            files.snapshots.append(name)
            if verified:
                files.verified.add(name)
        for hour in range(4):
            begin = last + hour * PER_DAY // 4 + 1
            start_ms = ms + hour * 6 * 3_600_000
            files.segments.append(
                SegmentName(
                    STREAM, LINE, begin, begin + PER_DAY // 4 - 1, start_ms, start_ms + 6 * 3_600_000 - 1
                )
            )
    return Catalogue(STREAM, {LINE: files})


def after(catalogue: Catalogue) -> LineFiles:
    """What is left of the line."""
    found = prune(catalogue, now=NOW, keep=WEEK)
    left = LineFiles(LINE)
    left.snapshots = [s for s in catalogue.of(LINE).snapshots if s not in found.snapshots]
    left.segments = [s for s in catalogue.of(LINE).segments if s not in found.segments]
    return left


@given(st.integers(0, 7 * 24 * 60), st.integers(8, 40))
def test_every_moment_within_the_kept_days_can_be_restored(minutes: int, days: int) -> None:
    """Rule: after pruning, a plan exists for any moment of the kept days, and leads as far as before."""
    catalogue = history(days)
    until = Until(time=NOW - timedelta(minutes=minutes))
    before = plan(catalogue.of(LINE), STREAM, until)
    found = plan(after(catalogue), STREAM, until)
    assert found.hole is None
    assert found.reaches == before.reaches


def test_what_is_older_goes() -> None:
    """Rule: a month of history shrinks to a week, and the one snapshot it starts from."""
    left = after(history(30))
    assert len(left.snapshots) == 8
    assert min(s.taken_at for s in left.snapshots) == NOW - timedelta(days=8)
    assert min(s.first_ms for s in left.segments) >= (NOW - timedelta(days=8)).timestamp() * 1000


def test_the_last_good_one_is_never_deleted() -> None:
    """Rule: when backups stopped long ago, or later ones were never found good, the last good one stays."""
    stopped = history(60, stopped_before=50)
    assert after(stopped).snapshots[-1] == stopped.of(LINE).snapshots[-1]
    doubtful = history(30)
    good = doubtful.of(LINE).snapshots[3]
    doubtful.of(LINE).verified = {good}
    assert good in after(doubtful).snapshots


def test_a_line_that_ended_goes_with_its_age() -> None:
    """Rule: an earlier history of the stream is kept for as long as any of it is within the kept days."""
    old, new = history(30, stopped_before=10), LineFiles(Line("20260220T000000000000Z"))
    taken = NOW - timedelta(days=1)
    new.snapshots = [SnapshotName(STREAM, new.line, stamp(taken), 5, int(taken.timestamp() * 1000))]
    new.verified = set(new.snapshots)
    old.lines[new.line] = new
    found = prune(old, now=NOW, keep=WEEK)
    assert set(found.snapshots) == set(old.of(LINE).snapshots)
    assert set(found.segments) == set(old.of(LINE).segments)
    assert found.lines == (LINE,)


def test_an_archive_without_a_snapshot_is_kept_whole() -> None:
    """Rule: segments are the only copy until a snapshot is there."""
    catalogue = history(30)
    catalogue.of(LINE).snapshots = []
    catalogue.of(LINE).verified = set()
    assert len(after(catalogue).segments) == len(catalogue.of(LINE).segments)
    assert prune(catalogue, now=NOW, keep=WEEK).is_empty
