"""A meter's query computed the plain way, from every event; it is the oracle our ledger is held against.

It shares no code with the ledger. Source of the rules: `meter_query.go`, `e2e/e2e_test.go`. Two are ours:
sums are exact by default, as with OpenMeter's `aggregation.enableDecimalPrecision`; and UNIQUE_COUNT leaves
out events without a value, where OpenMeter counts them as one more value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any
from zoneinfo import ZoneInfo

from kgents_devstack.openmeter.clocktext import show, show_seconds, whole_seconds
from kgents_devstack.openmeter.filters import TextFilter
from kgents_devstack.openmeter.meters import Meter
from kgents_devstack.openmeter.store import StoredEvent
from kgents_devstack.openmeter.values import EXACT, Path, decode, number, text_at
from kgents_devstack.openmeter.windows import MINUTE_SECONDS, windower

UTC_ZONE = ZoneInfo("UTC")


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked of a meter.

    Attributes:
        start: From when (included), in whole seconds.
        end: Until when (excluded), in whole seconds.
        subjects: Only these, each a group of its own; None for all together.
        group_by: Keys of the meter, and `subject`.
        filters: By key of the meter.
    """

    start: datetime | None = None
    end: datetime | None = None
    window_size: str | None = None
    zone: ZoneInfo = UTC_ZONE
    subjects: Sequence[str] | None = None
    group_by: Sequence[str] = ()
    filters: Mapping[str, Sequence[TextFilter]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Row:
    """One value; `subject` is None where it is not grouped by."""

    value: float
    start: str
    end: str
    subject: str | None
    groups: Mapping[str, str]

    def document(self) -> dict[str, object]:
        """As the API gives it."""
        return {
            "value": plain(self.value),
            "windowStart": self.start,
            "windowEnd": self.end,
            "subject": self.subject,
            "groupBy": self.groups,
        }


@dataclass(slots=True)
class _Bucket:
    """The events of one window and one group."""

    first: int
    last: int
    count: int = 0
    numbers: list[Decimal] = field(default_factory=list)
    distinct: set[str] = field(default_factory=set)
    latest: tuple[int, Decimal] | None = None


def plain(value: float) -> float | int:
    """A number as Go writes it: 3, not 3.0."""
    return int(value) if value.is_integer() and abs(value) < 1e15 else value


def evaluate(meter: Meter, query: Query, events: Iterable[StoredEvent], *, exact: bool = True) -> list[Row]:
    """The rows, ordered by window, then subject, then groups (OpenMeter orders by window alone).

    Args:
        events: Events of the meter's type, at least those of the query's subjects, in the order they came.
        exact: Sum without rounding; else add float64 numbers one after another.
    """
    keys = [key for key in query.group_by if key != "subject"]
    by_subject = query.subjects is not None or "subject" in query.group_by
    wanted = None if query.subjects is None else frozenset(query.subjects)
    paths = {key: meter.group_path(key) for key in {*keys, *query.filters}}
    value_path = meter.value_path
    looks_inside = bool(paths) or value_path is not None
    window = None if query.window_size is None else windower(query.window_size, query.zone)
    start, end = _limits(meter, query)
    buckets: dict[tuple[int, int, str | None, tuple[str, ...]], _Bucket] = {}
    for event in events:
        at = event.time
        if (start is not None and at < start) or (end is not None and at >= end):
            continue
        if wanted is not None and event.subject not in wanted:
            continue
        document = decode(event.data) if looks_inside else None
        texts = {key: text_at(document, path) or "" for key, path in paths.items()}
        if not all(passes(texts[key]) for key, tests in query.filters.items() for passes in tests):
            continue
        bounds = (0, 0) if window is None else window(at)
        group = (*bounds, event.subject if by_subject else None, tuple(texts[key] for key in keys))
        bucket = buckets.get(group)
        if bucket is None:
            bucket = buckets[group] = _Bucket(at, at)
        _take(bucket, meter.aggregation, value_path, document, at)
    rows = []
    for (opens, closes, subject, groups), bucket in sorted(buckets.items(), key=_order):
        value = _aggregate(meter.aggregation, bucket, exact)
        if value is not None:
            bounds_text = (
                _shown_bounds(query, bucket.first, bucket.last)
                if window is None
                else (show_seconds(opens), show_seconds(closes))
            )
            rows.append(Row(value, *bounds_text, subject, dict(zip(keys, groups, strict=True))))
    is_count = meter.aggregation in ("COUNT", "UNIQUE_COUNT")
    if not buckets and is_count and window is None and not by_subject and not keys:
        return [Row(0.0, *_shown_bounds(query, 0, 0), None, {})]
    return rows


def result(query: Query, rows: Sequence[Row]) -> dict[str, object]:
    """`MeterQueryResult`: what was asked is repeated, what was not is left out."""
    asked = {
        "from": query.start and show(query.start),
        "to": query.end and show(query.end),
        "windowSize": query.window_size,
    }
    data = [row.document() for row in rows]
    return {name: value for name, value in asked.items() if value is not None} | {"data": data}


def _limits(meter: Meter, query: Query) -> tuple[int | None, int | None]:
    starts = [whole_seconds(moment) for moment in (query.start, meter.event_from) if moment is not None]
    return max(starts, default=None), None if query.end is None else whole_seconds(query.end)


def _take(bucket: _Bucket, aggregation: str, path: Path | None, document: object, at: int) -> None:
    bucket.count += 1
    bucket.first = min(bucket.first, at)
    bucket.last = max(bucket.last, at)
    if path is None:
        return
    if aggregation == "UNIQUE_COUNT":
        text = text_at(document, path)
        if text is not None and not _is_null(document, path):
            bucket.distinct.add(text)
        return
    value = number(text_at(document, path))
    if value is None:
        return
    if aggregation == "LATEST":
        # Within one second OpenMeter's choice is arbitrary; ours is the one that came last.
        if bucket.latest is None or at >= bucket.latest[0]:
            bucket.latest = (at, value)
    else:
        bucket.numbers.append(value)


def _is_null(document: object, path: Sequence[str | int]) -> bool:
    value: Any = document
    for step in path:
        value = value[step]
    return value is None


def _aggregate(aggregation: str, bucket: _Bucket, exact: bool) -> float | None:
    if aggregation == "COUNT":
        return float(bucket.count)
    if aggregation == "UNIQUE_COUNT":
        return float(len(bucket.distinct)) if bucket.distinct else None
    if aggregation == "LATEST":
        return None if bucket.latest is None else float(bucket.latest[1])
    if not bucket.numbers:
        return None
    if aggregation in ("MIN", "MAX"):
        return float(min(bucket.numbers) if aggregation == "MIN" else max(bucket.numbers))
    count = len(bucket.numbers)
    if not exact:
        total = sum((float(value) for value in bucket.numbers), 0.0)
        return total if aggregation == "SUM" else total / count
    exact_total = Decimal(0)
    for value in bucket.numbers:
        exact_total = EXACT.add(exact_total, value)
    return float(exact_total) if aggregation == "SUM" else float(Fraction(exact_total) / count)


def _shown_bounds(query: Query, first: int, last: int) -> tuple[str, str]:
    """Without windows: what was asked for, else the minutes around the first and the last event."""
    opens = show_seconds(first - first % MINUTE_SECONDS) if query.start is None else show(query.start)
    closes = (
        show_seconds(last - last % MINUTE_SECONDS + MINUTE_SECONDS) if query.end is None else show(query.end)
    )
    return opens, closes


def _order(
    item: tuple[tuple[int, int, str | None, tuple[str, ...]], _Bucket],
) -> tuple[int, str, tuple[str, ...]]:
    (opens, _, subject, groups), _ = item
    return opens, subject or "", groups
