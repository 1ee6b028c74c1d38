"""An archive that has the lock and stores nothing says so within ten seconds, and is begun anew."""

from __future__ import annotations

from collections.abc import Coroutine
from datetime import timedelta
from typing import Any

from prometheus_client import CollectorRegistry

from kgents_backup.handlers.schedule import ArchiveWatch, Loop
from kgents_backup.operations.archiving import ArchiveState
from kgents_common.clock import ManualClock
from kgents_common.health import Status
from kgents_common.watchdog import StallMetrics


class Archive:
    """Knows only how it stands."""

    def __init__(self) -> None:
        self.state = ArchiveState()


def watched(archive: Archive, clock: ManualClock) -> ArchiveWatch:
    async def body() -> None: ...

    def begin() -> Coroutine[Any, Any, None]:
        return body()

    return ArchiveWatch(
        archive,  # type: ignore[arg-type]
        Loop("archive", begin),
        "archive.S",
        every=timedelta(seconds=5),
        clock=clock,
        metrics=StallMetrics(CollectorRegistry()),
    )


def test_ready_is_who_moves_on_or_stands_by() -> None:
    """Rule: with segments of five seconds, ten seconds without one are a stall; a standby has none."""
    clock, archive = ManualClock(), Archive()
    watch = watched(archive, clock)
    clock.advance(timedelta(hours=1))
    assert watch.check().status is Status.DEGRADED
    archive.state.held_at = clock.now().timestamp()
    clock.advance(timedelta(seconds=9))
    assert watch.check().status is Status.OK
    clock.advance(timedelta(seconds=2))
    assert watch.check().status is Status.DOWN
    archive.state.stored_at = clock.now().timestamp()
    assert watch.check().status is Status.OK
    archive.state.is_restoring = True
    clock.advance(timedelta(minutes=1))
    assert watch.check().status is Status.DEGRADED
