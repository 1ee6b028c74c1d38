"""What was ingested, as OpenMeter lists it: v1's bare list, v2's and v3's pages; it ingests nothing.

Pages go by (time, id), both descending, and a page that is not empty always names a next, which may be empty
(`event_query_v2.go`, `pkg/pagination/v2`). There are no customers here, so `no customer found` is never said.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec

from kgents_devstack.openmeter.clocktext import EPOCH, parse, show, show_seconds
from kgents_devstack.openmeter.filters import chosen_texts, moment_filter, text_filter
from kgents_devstack.openmeter.meters import Meter
from kgents_devstack.openmeter.problem import Refusal
from kgents_devstack.openmeter.store import EventStore, StoredEvent
from kgents_devstack.openmeter.validity import validation_errors
from kgents_devstack.openmeter.values import decode, kept

MAX_PAGE = 100
LOOK_BACK = timedelta(days=32)

Test = Callable[[StoredEvent], bool]
Position = tuple[int, str]


def listed_v1(store: EventStore, asked: Mapping[str, str], now: datetime) -> list[StoredEvent]:
    """`GET /api/v1/events`: id and subject match in part, bounds are included, 32 days are looked back.

    Raises:
        Refusal: 400.
    """
    moments = {name: _moment(asked, name) for name in ("from", "to", "ingestedAtFrom", "ingestedAtTo")}
    oldest = now - LOOK_BACK
    for name in ("from", "ingestedAtFrom"):
        moment = moments[name]
        if moment is not None and moment < oldest:
            raise Refusal(400, f"validation error: {name} date is too old, must be after {show(oldest)}")
    start = moments["from"] or oldest
    end, stored_start, stored_end = (moments[name] for name in ("to", "ingestedAtFrom", "ingestedAtTo"))
    if end is not None and end < start:
        raise Refusal(400, f"validation error: to date is before from date: {show(end)} < {show(start)}")
    part_of_id, part_of_subject = asked.get("id", ""), asked.get("subject", "")

    def passes(event: StoredEvent) -> bool:
        at, ingested = EPOCH + timedelta(seconds=event.time), _ingested_at(event)
        return (
            part_of_id in event.id
            and part_of_subject in event.subject
            and start.replace(microsecond=0) <= at
            and (end is None or at <= end)
            and (stored_start is None or ingested >= stored_start)
            and (stored_end is None or ingested <= stored_end)
        )

    return _page(store, store.newest_first(), passes, None, _limit(asked.get("limit"), "limit", MAX_PAGE))


def listed_v2(store: EventStore, asked: Mapping[str, str]) -> tuple[list[StoredEvent], str | None]:
    """`GET /api/v2/events`: a page and the cursor of the next.

    Raises:
        Refusal: 400.
    """
    conditions = _conditions(asked.get("filter"))
    tests = [_test(name, condition) for name, condition in conditions.items()]
    ids = chosen_texts(conditions.get("id"))
    cursor = asked.get("cursor")
    page = _page(
        store,
        _candidates(store, ids),
        lambda event: all(test(event) for test in tests),
        None if cursor is None else decode_cursor(cursor),
        _limit(asked.get("limit"), "limit", MAX_PAGE),
    )
    return page, encode_cursor(page[-1]) if page else None


def listed_v3(
    store: EventStore, asked: Sequence[tuple[str, str]]
) -> tuple[list[StoredEvent], str | None, int]:
    """`GET /api/v3/openmeter/events`: a page, the cursor of the next, the page's size.

    Raises:
        Refusal: 400, naming the query parameter.
    """
    tests: list[Test] = []
    ids: frozenset[str] | None = None
    size, position = 20, None
    for name, value in asked:
        if name == "page[size]":
            size = _limit(value, name, 20)
        elif name == "page[after]":
            position = decode_cursor(value)
        elif name.startswith("filter["):
            field, condition = _v3_condition(name, value)
            tests.append(_test(field, condition))
            ids = chosen_texts(condition) if field == "id" else ids
        elif name != "sort" or value not in ("time", "time desc"):
            raise Refusal(400, f"{name}: not supported by this stand-in")
    page = _page(
        store, _candidates(store, ids), lambda event: all(test(event) for test in tests), position, size
    )
    return page, encode_cursor(page[-1]) if page else None, size


def document(event: StoredEvent, meters: Sequence[Meter]) -> dict[str, object]:
    """`IngestedEvent` of v1 and v2; what is wrong with it is one text, a line for each meter."""
    found: dict[str, object] = {
        "event": _event(event),
        "ingestedAt": show(_ingested_at(event)),
        "storedAt": show(_ingested_at(event)),
    }
    errors = validation_errors(event, meters)
    return found | ({"validationError": "\n".join(errors)} if errors else {})


def document_v3(event: StoredEvent, meters: Sequence[Meter]) -> dict[str, object]:
    """`MeteringIngestedEvent` of v3."""
    stored_at = show(_ingested_at(event))
    found: dict[str, object] = {"event": _event(event), "ingested_at": stored_at, "stored_at": stored_at}
    errors = [
        {"code": _code(message), "message": message, "attributes": {}}
        for message in validation_errors(event, meters)
    ]
    return found | ({"validation_errors": errors} if errors else {})


def encode_cursor(event: StoredEvent) -> str:
    """The place after an event: its time and id, in base 64."""
    return base64.b64encode(f"{show_seconds(event.time)},{event.id}".encode()).decode()


def decode_cursor(text: str) -> Position:
    """The place a cursor names.

    Raises:
        Refusal: 400.
    """
    try:
        moment, comma, event_id = base64.b64decode(text, validate=True).decode().partition(",")
        if not comma or not event_id:
            raise ValueError("no delimiter found")
        return int(parse(moment).timestamp()), event_id
    except (ValueError, binascii.Error) as error:
        raise Refusal(400, f"cursor is invalid: {error}") from None


def _page(
    store: EventStore, rows: Sequence[int], passes: Test, after: Position | None, limit: int
) -> list[StoredEvent]:
    page: list[StoredEvent] = []
    for event in _after(store, rows, after):
        if passes(event):
            page.append(event)
            if len(page) == limit:
                break
    return page


def _after(store: EventStore, rows: Sequence[int], after: Position | None) -> Iterator[StoredEvent]:
    """The events of rows that are ordered newest first, from the first that comes after a place."""
    low, high = 0, 0 if after is None else len(rows)
    while low < high:
        middle = (low + high) // 2
        event = store.event(rows[middle])
        if after is not None and (event.time, event.id) >= after:
            low = middle + 1
        else:
            high = middle
    return (store.event(rows[place]) for place in range(low, len(rows)))


def _candidates(store: EventStore, ids: frozenset[str] | None) -> Sequence[int]:
    if ids is None:
        return store.newest_first()
    rows = store.rows_with_ids(ids)

    def place(row: int) -> Position:
        event = store.event(row)
        return event.time, event.id

    return sorted(rows, key=place, reverse=True)


def _conditions(text: str | None) -> Mapping[str, object]:
    if not text:
        return {}
    try:
        conditions = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise Refusal(400, f"invalid filter: {error}") from None
    if not isinstance(conditions, dict):
        raise Refusal(400, "invalid filter: must be an object")
    if "time" in conditions and "ingestedAt" in conditions:
        raise Refusal(400, "validation error: time and ingested_at cannot both be set")
    return conditions


def _test(field: str, condition: object) -> Test:
    if field in ("id", "source", "subject", "type"):
        passes = text_filter(condition, field)
        return lambda event: passes(getattr(event, field))
    if field == "time":
        in_time = moment_filter(condition, field)
        return lambda event: in_time(EPOCH + timedelta(seconds=event.time))
    if field in ("ingestedAt", "ingested_at"):
        in_ingested = moment_filter(condition, field)
        return lambda event: in_ingested(_ingested_at(event))
    raise Refusal(400, f"invalid filter: unknown field {field!r}")


def _v3_condition(name: str, value: str) -> tuple[str, dict[str, Any]]:
    """`filter[subject][eq]=x` as the condition v2 would be given; `filter[subject]=x` is the same."""
    field, _, rest = name.removeprefix("filter[").partition("]")
    operator = rest.removeprefix("[").removesuffix("]") or "eq"
    if operator == "oeq":
        return field, {"$in": value.split(",")}
    if operator == "contains":
        escaped = value.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
        return field, {"$ilike": f"%{escaped}%"}
    names = {"eq": "$eq", "neq": "$ne", "gt": "$gt", "gte": "$gte", "lt": "$lt", "lte": "$lte"}
    if operator not in names:
        raise Refusal(400, f"{name}: unsupported operator {operator!r}")
    return field, {names[operator]: value}


def _moment(asked: Mapping[str, str], name: str) -> datetime | None:
    text = asked.get(name)
    if text is None:
        return None
    try:
        return parse(text)
    except ValueError as error:
        raise Refusal(400, f"invalid param format {name}: {error}") from None


def _limit(text: str | None, name: str, default: int) -> int:
    if text is None:
        return default
    if not text.isdecimal() or not 1 <= int(text) <= MAX_PAGE:
        raise Refusal(400, f"{name} must be between 1 and {MAX_PAGE}")
    return int(text)


def _ingested_at(event: StoredEvent) -> datetime:
    return EPOCH + timedelta(microseconds=event.ingested_at)


def _event(event: StoredEvent) -> dict[str, object]:
    found: dict[str, object] = {
        "id": event.id,
        "source": event.source,
        "specversion": "1.0",
        "type": event.type,
        "subject": event.subject,
        "time": show_seconds(event.time),
    }
    data = decode(event.data)
    return found if data is None else found | {"datacontenttype": "application/json", "data": kept(data)}


def _code(message: str) -> str:
    return "no_matching_meter" if message.startswith("no meter") else "invalid_event"
