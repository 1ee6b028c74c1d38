"""Answers in OpenMeter's shapes, as JSON or CSV; long ones are sent piece by piece while they are read."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from kgents_common import shown
from kgents_metering.model.query import Query
from kgents_metering.sinks.ledger.meters import MeterInForce
from kgents_metering.sinks.ledger.reads import Answer, ListedEvent, Row

# An answer of so few rows is made at once; a cursor gives so many at a time, too.
WHOLE_ROWS = 500

_ENCODER = msgspec.json.Encoder(decimal_format="number")


def as_json(value: object) -> Response:
    """A whole answer."""
    return Response(_ENCODER.encode(value), media_type="application/json")


class Pieces(Response):
    """An answer whose length is not known when it begins: an error in it ends the connection early."""

    def __init__(self, pieces: AsyncIterator[bytes], media_type: str, headers: Mapping[str, str]) -> None:
        self._pieces = pieces
        self.status_code = 200
        self.media_type = media_type
        self.background = None
        self.init_headers(headers)

    async def __call__(self, _: Scope, __: Receive, send: Send) -> None:
        """Send it; the connection's own back-pressure sets the pace."""
        start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        await send(start)
        async for piece in self._pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _sent(
    found: Answer, pieces: AsyncIterator[bytes], media_type: str, headers: Mapping[str, str]
) -> Response:
    """Whole, with its length, where it is short; else piece by piece."""
    if found.total > WHOLE_ROWS:
        return Pieces(pieces, media_type, headers)
    body = b"".join([piece async for piece in pieces])
    return Response(body, media_type=media_type, headers=headers)


async def json_rows(found: Answer, echoed: Mapping[str, str], query: Query) -> Response:
    """`{from, to, windowSize, data: […]}`, what was asked for echoed."""

    async def pieces() -> AsyncIterator[bytes]:
        separator = _ENCODER.encode(echoed)[:-1] + (b',"data":[' if echoed else b'"data":[')
        async for chunk in found.chunks:
            yield separator + _ENCODER.encode([_row(row, query) for row in chunk])[1:-1]
            separator = b","
        yield b"]}" if separator == b"," else separator + b"]}"

    return await _sent(found, pieces(), "application/json", {})


async def csv_rows(found: Answer, query: Query, slug: str) -> Response:
    """OpenMeter's columns: window_start, window_end, subject where grouped, the keys, value."""
    subject = ["subject"] if query.by_subject else []
    head = ["window_start", "window_end", *subject, *query.group_by, "value"]
    line = _csv_line(query)

    async def pieces() -> AsyncIterator[bytes]:
        yield _csv_lines([head])
        async for chunk in found.chunks:
            yield _csv_lines([line(row) for row in chunk])

    headers = {"content-disposition": f'attachment; filename="{slug}.csv"'}
    return await _sent(found, pieces(), "text/csv", headers)


def meter(found: MeterInForce) -> dict[str, object]:
    """A meter."""
    return {
        "id": found.ulid,
        **found.meter.definition(),
        "createdAt": found.created_at,
        "updatedAt": found.updated_at,
    }


def event(found: ListedEvent) -> dict[str, object]:
    """A listed event."""
    shown: dict[str, object] = {
        "event": {
            "id": found.id,
            "source": found.source,
            "specversion": "1.0",
            "type": found.type,
            "subject": found.subject,
            "time": found.time,
            "data": msgspec.Raw(found.data.encode()),
        },
        "ingestedAt": found.stored_at,
        "storedAt": found.stored_at,
    }
    if found.invalid is not None:
        shown["validationError"] = found.invalid
    return shown


def _row(row: Row, query: Query) -> dict[str, object]:
    return {
        "value": row.value,
        "windowStart": row.start,
        "windowEnd": row.end,
        "subject": row.tenant if query.by_subject else None,
        "groupBy": row.groups,
    }


def _csv_line(query: Query) -> Callable[[Row], list[str]]:
    return lambda row: [
        f"{row.start:%Y-%m-%dT%H:%M:%SZ}",
        f"{row.end:%Y-%m-%dT%H:%M:%SZ}",
        *((row.tenant,) if query.by_subject else ()),
        *(shown.cell(row.groups[key]) for key in query.group_by),
        f"{row.value:f}",
    ]


def _csv_lines(lines: Sequence[Sequence[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue().encode()
