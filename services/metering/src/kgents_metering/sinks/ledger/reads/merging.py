"""Rows of several tenants as one answer, by window; those of each tenant are in order already."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from heapq import heapify, heappop, heapreplace

from kgents_metering.sinks.ledger.reads.rows import Row

Chunks = AsyncIterator[list[Row]]


async def in_order(found: Sequence[Chunks], size: int, *, by_window: bool) -> Chunks:
    """By window, then in the order of `found`; without windows one after another.

    Args:
        size: Rows of a chunk, where there is something to merge.
    """
    if len(found) == 1 or not by_window:
        for chunks in found:
            async for chunk in chunks:
                yield chunk
        return
    rows = [_rows(chunks) for chunks in found]
    first = [(place, await anext(each, None)) for place, each in enumerate(rows)]
    heads: list[tuple[datetime, int, Row]] = [
        (row.start, place, row) for place, row in first if row is not None
    ]
    heapify(heads)
    made: list[Row] = []
    while heads:
        _, place, row = heads[0]
        made.append(row)
        following = await anext(rows[place], None)
        if following is None:
            heappop(heads)
        else:
            heapreplace(heads, (following.start, place, following))
        if len(made) == size:
            yield made
            made = []
    if made:
        yield made


async def _rows(chunks: Chunks) -> AsyncIterator[Row]:
    async for chunk in chunks:
        for row in chunk:
            yield row
