"""How far the ledger is in its streams, against how far their consumers are; and the streams delivered again.

A consumer acknowledges after the commit. So where one is ahead of the ledger, the ledger is older than it
was: it came back from a dump. Then it owes again what may have been delivered, and its generation is raised;
and it lacks what the consumer will not bring again, until the consumer is put back.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from nats.aio.client import Client
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from kgents_common import streams
from kgents_common.database import transient_errors
from kgents_common.errors import TransientError
from kgents_common.rfc3339 import moment
from kgents_common.streams import ConsumerSpec, JetStreamApiError

CONSUMERS = (streams.METERING, streams.METERING_BILLING_FACTS)
# How many places of a stream are looked at; a ledger that came back lacks a tail, which is the last of them.
MAX_LOOKS = 50
RECREATE_ATTEMPTS = 10

_NO_MESSAGE = 404
_GAPS = """
select lower(gap), upper(gap) - 1 from unnest(
    int8multirange(int8range(%(first)s, %(last)s + 1))
    - coalesce((select applied from metering.cursor where stream = %(stream)s and epoch = %(epoch)s), '{}')
) as gap order by lower(gap) desc limit %(limit)s
"""
_FLOOR = "select floor from metering.cursor where stream = %s and epoch = %s"
_IS_THERE = """
select exists (select from metering.event where epoch = %(epoch)s and seq = %(seq)s)
    or exists (select from metering.duplicate where (stream, epoch, seq) = (%(stream)s, %(epoch)s, %(seq)s))
    or exists (select from metering.conflict where (stream, epoch, seq) = (%(stream)s, %(epoch)s, %(seq)s))
    or exists (select from metering.dead where (stream, epoch, seq) = (%(stream)s, %(epoch)s, %(seq)s))
"""

Pool = AsyncConnectionPool[AsyncConnection]


@dataclass(frozen=True, slots=True)
class Behind:
    """A ledger that lacks messages its consumer has acknowledged.

    Attributes:
        first: The first sequence found that the stream still holds and the ledger lacks.
        floor: The consumer's: everything up to it was acknowledged.
    """

    consumer: ConsumerSpec
    first: int
    floor: int

    def __str__(self) -> str:
        return (
            f"the ledger is behind {self.consumer.stream}/{self.consumer.name}:"
            f" it lacks sequence {self.first}, acknowledged up to {self.floor}"
        )


class Positions:
    """Looks at one ledger and the streams it is fed from."""

    def __init__(self, pool: Pool, client: Client) -> None:
        self._pool = pool
        self._client = client

    async def behind(self, consumer: ConsumerSpec) -> Behind | None:
        """Whether the ledger lacks what the consumer acknowledged; None where it does not.

        Raises:
            TransientError: Postgres or JetStream does not answer.
            JetStreamApiError: The stream or the consumer is not there.
        """
        floor = int((await self._ask(f"CONSUMER.INFO.{_name(consumer)}"))["ack_floor"]["stream_seq"])
        epoch, first = await self._stream(consumer)
        if floor < first:
            return None
        if _is_whole(consumer):
            missing = await self._first_in_gaps(consumer, epoch, first, floor)
        else:
            missing = await self._first_not_there(consumer, epoch, first, floor)
        return None if missing is None else Behind(consumer, missing, floor)

    async def applied_to(self, consumer: ConsumerSpec, last: int) -> int:
        """Up to where, at most `last`, the ledger has every message that the stream holds.

        Raises:
            TransientError: Postgres or JetStream does not answer.
        """
        epoch, first = await self._stream(consumer)
        gaps = await self._gaps(consumer, epoch, first, last, limit=None)
        for start, end in gaps[::-1][:MAX_LOOKS]:
            held = await self._next(consumer, start)
            if held is not None and held <= end:
                return held - 1
        return gaps[::-1][MAX_LOOKS][0] - 1 if len(gaps) > MAX_LOOKS else last

    async def redeliver(self, consumer: ConsumerSpec, *, whole: bool = False) -> int:
        """Put the consumer back to the first message the ledger lacks (the stream's first where `whole`).

        Returns:
            The sequence it goes on at; 0 where the ledger lacks nothing and the consumer stays.

        Raises:
            TransientError: Postgres or JetStream does not answer; run it again.
        """
        start = 1
        if not whole:
            found = await self.behind(consumer)
            if found is None:
                return 0
            start = await self._lowest(found)
        for _ in range(RECREATE_ATTEMPTS):
            try:
                await self._ask(f"CONSUMER.DELETE.{_name(consumer)}")
            except JetStreamApiError as error:
                if error.code != _NO_MESSAGE:
                    raise
            try:
                await streams.recreate_consumer(self._client, consumer, start_sequence=start)
                return start
            except JetStreamApiError:  # a watchdog was faster and put it back where it stood
                await asyncio.sleep(0.1)
        raise TransientError(
            f"the consumer {consumer.name} was put back by a running service each time; run this again"
        )

    async def _lowest(self, found: Behind) -> int:
        """Where the ledger's knowledge ends: the lowest gap that holds a message, or the position."""
        consumer = found.consumer
        epoch, first = await self._stream(consumer)
        if not _is_whole(consumer):
            return max(await self._floor(consumer, epoch) + 1, 1)
        gaps = await self._gaps(consumer, epoch, first, found.floor, limit=None)
        for start, end in gaps[::-1][:MAX_LOOKS]:
            held = await self._next(consumer, start)
            if held is not None and held <= end:
                return held
        return gaps[::-1][MAX_LOOKS][0] if len(gaps) > MAX_LOOKS else found.first

    async def _stream(self, consumer: ConsumerSpec) -> tuple[datetime, int]:
        """The stream's creation time and first sequence."""
        info = await self._ask(f"STREAM.INFO.{consumer.stream}")
        return moment(info["created"]), int(info["state"]["first_seq"])

    async def _first_in_gaps(
        self, consumer: ConsumerSpec, epoch: datetime, first: int, floor: int
    ) -> int | None:
        """A sequence in a gap of the ledger's ranges of which the stream still has the message."""
        for start, end in await self._gaps(consumer, epoch, first, floor, limit=MAX_LOOKS):
            held = await self._next(consumer, start)
            if held is not None and held <= end:
                return held
        return None

    async def _first_not_there(
        self, consumer: ConsumerSpec, epoch: datetime, first: int, floor: int
    ) -> int | None:
        """The first message beyond the position that has no row, among the next ones and the last one."""
        position = await self._floor(consumer, epoch)
        last = await self._last(consumer)
        places = [last] if last is not None and position < last <= floor else []
        at = max(position + 1, first)
        for _ in range(MAX_LOOKS):
            held = await self._next(consumer, at)
            if held is None or held > floor:
                break
            places.append(held)
            at = held + 1
        missing = [place for place in places if not await self._is_there(consumer, epoch, place)]
        return min(missing, default=None)

    async def _gaps(
        self, consumer: ConsumerSpec, epoch: datetime, first: int, last: int, *, limit: int | None
    ) -> list[tuple[int, int]]:
        values = {"stream": consumer.stream, "epoch": epoch, "first": first, "last": last, "limit": limit}
        with transient_errors():
            async with self._pool.connection() as connection:
                return await (await connection.execute(_GAPS, values)).fetchall()

    async def _floor(self, consumer: ConsumerSpec, epoch: datetime) -> int:
        with transient_errors():
            async with self._pool.connection() as connection:
                row = await (await connection.execute(_FLOOR, [consumer.stream, epoch])).fetchone()
        return row[0] if row else 0

    async def _is_there(self, consumer: ConsumerSpec, epoch: datetime, seq: int) -> bool:
        values = {"stream": consumer.stream, "epoch": epoch, "seq": seq}
        with transient_errors():
            async with self._pool.connection() as connection:
                row = await (await connection.execute(_IS_THERE, values)).fetchone()
        return bool(row and row[0])

    async def _next(self, consumer: ConsumerSpec, start: int) -> int | None:
        """The first message at or after `start` that is the consumer's."""
        return await self._message(consumer, {"seq": start, "next_by_subj": consumer.filter_subject})

    async def _last(self, consumer: ConsumerSpec) -> int | None:
        return await self._message(consumer, {"last_by_subj": consumer.filter_subject})

    async def _message(self, consumer: ConsumerSpec, asked: dict[str, object]) -> int | None:
        try:
            found = await streams.request(self._client, f"STREAM.MSG.GET.{consumer.stream}", asked)
        except JetStreamApiError as error:
            if error.code == _NO_MESSAGE:
                return None
            raise
        return int(found["message"]["seq"])

    async def _ask(self, subject: str) -> dict[str, Any]:
        return await streams.request(self._client, subject)


def _is_whole(consumer: ConsumerSpec) -> bool:
    """Whether every message of the stream is this consumer's, so that the ledger keeps ranges of it."""
    return consumer is streams.METERING


def _name(consumer: ConsumerSpec) -> str:
    return f"{consumer.stream}.{consumer.name}"
