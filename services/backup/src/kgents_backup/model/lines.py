"""Which line a live stream is on: the newest one whose end it still holds, or a new one; no I/O."""

from __future__ import annotations

from kgents_backup.model.catalogue import Catalogue
from kgents_backup.model.keys import Line


def newest_with(catalogue: Catalogue, created: str) -> Line | None:
    """The newest known line of a stream that was created then."""
    mine = [line for line in catalogue.lines if line.created == Line.of(created).created]
    return max(mine, default=None)


def current(
    catalogue: Catalogue,
    *,
    created: str,
    first_sequence: int,
    last_sequence: int,
    last_time_ms: int,
    time_ms_at_head: int | None,
) -> Line:
    """The line of the live stream.

    A server may keep the creation time through a restore (2.10 does), so the time alone does not tell two
    histories apart: the message at the known head must be the same one too. Where it was deleted since, the
    history is the same if the stream went on from there.

    Args:
        created: As the server gives it.
        time_ms_at_head: The time of the live message at the newest known line's last sequence; None where
            the stream does not hold it.
    """
    known = newest_with(catalogue, created)
    if known is None:
        return Line.of(created)
    head = catalogue.lines[known].head
    if head is None:
        return known
    sequence, time_ms = head
    if time_ms_at_head is not None:
        is_same = time_ms_at_head == time_ms
    else:
        is_gone_since = sequence < first_sequence or last_time_ms >= time_ms
        is_same = last_sequence >= sequence and is_gone_since
    return known if is_same else Line(known.created, known.number + 1)
