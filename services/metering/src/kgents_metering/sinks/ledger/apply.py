"""Applying a batch in one transaction: what counts, what repeats, what contradicts, what is dead."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import msgspec
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from kgents_common.crash import CrashPoints
from kgents_common.database import transient_errors
from kgents_common.dead_letters import Burial, bury
from kgents_metering.model.event import Dead, Event, Message
from kgents_metering.model.measure import GROUP_TOO_LARGE, Invalid, Sample
from kgents_metering.model.rollup import Rollup, stream_order
from kgents_metering.sinks.ledger.meters import EMPTY, LOCK, MeterSet, current
from kgents_metering.sinks.ledger.rollups import add_rollup

# Sorted by key, so that two workers with the same keys wait for each other and never deadlock; within a key
# the first of the stream counts.
_COUNT = """
with input as materialized (
    select t.place, decode(t.key, 'hex') as key, decode(t.payload_hash, 'hex') as payload_hash, t.tenant,
           t.type, t.source, t.id, t.time, t.stored_at, t.epoch, t.seq, t.data, t.traceparent,
           nextval('metering.event_n') as n
    from json_to_recordset(%(events)s::json) as t (
        place integer, key text, payload_hash text, tenant text, type text, source text, id text,
        time timestamptz, stored_at timestamptz, epoch timestamptz, seq bigint, data text, traceparent text)
), fresh as (
    insert into metering.seen (key, n, payload_hash)
    select key, n, payload_hash from input order by place
    on conflict (key) do nothing
    returning n
), stored as (
    insert into metering.event (n, key, tenant, type, source, ce_id, time, stored_at, epoch, seq, data)
    select n, key, tenant, type, source, id, time, stored_at, epoch, seq, data from input join fresh using (n)
), owed as (
    insert into metering.outbox (target, n, traceparent)
    select %(target)s, n, traceparent from input join fresh using (n)
    where %(target)s::text is not null
)
select input.place, fresh.n from input join fresh using (n)
"""
_KNOWN = """
select s.key, s.n, s.payload_hash, e.stored_at, e.seq
from metering.seen s join metering.event e using (n) where s.key = any(%s::bytea[])
"""
_DUPLICATE = """
insert into metering.duplicate (stream, epoch, seq, stored_at, n)
select * from unnest(%s::text[], %s::timestamptz[], %s::bigint[], %s::timestamptz[], %s::bigint[])
    as new (stream, epoch, seq, stored_at, n)
where not exists (select from metering.duplicate as old where old.stored_at is null
    and old.stream = new.stream and old.seq = new.seq and old.epoch = new.epoch)
on conflict do nothing
"""
_CONFLICT = """
insert into metering.conflict (stream, epoch, seq, stored_at, n, payload_hash, body)
select * from unnest(%s::text[], %s::timestamptz[], %s::bigint[], %s::timestamptz[], %s::bigint[],
        %s::bytea[], %s::bytea[])
    as new (stream, epoch, seq, stored_at, n, payload_hash, body)
where not exists (select from metering.conflict as old where old.stored_at is null
    and old.stream = new.stream and old.seq = new.seq and old.epoch = new.epoch)
on conflict do nothing
"""
_CURSOR = """
insert into metering.cursor as c (stream, epoch, applied) values (%s, %s, %s::int8multirange)
on conflict (stream, epoch) do update set applied = c.applied + excluded.applied
"""
_FLOOR = """
insert into metering.cursor as c (stream, epoch, floor) values (%s, %s, %s)
on conflict (stream, epoch) do update set floor = greatest(c.floor, excluded.floor), applied = '{}'
"""
_ENCODER = msgspec.json.Encoder()

# Of one event: the id of a meter and what the event adds to it, or why it cannot.
Samples = Sequence[tuple[int, Sample | Invalid]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the messages of a batch ended: `accepted`, `duplicate`, `conflict`, `dead`, `redelivered`."""

    counts: Counter[str]
    invalid: Counter[str] = field(default_factory=Counter)


class Ledger:
    """Applies batches; several may run, in one process or many.

    Args:
        target: Whom every counted event is owed to; None to owe it to nobody.
        stream: The stream whose position the cursor keeps.
        floor: Up to which sequence the consumer has acknowledged, for one that gets only some of a stream's
            messages: ranges of those would be as many as they are. None for one that gets all: the cursor
            keeps ranges, and gaps can be seen.
    """

    def __init__(
        self,
        pool: AsyncConnectionPool[AsyncConnection],
        *,
        target: str | None,
        stream: str,
        crash_points: CrashPoints,
        floor: Callable[[], int] | None = None,
    ) -> None:
        self._pool = pool
        self._target = target
        self._stream = stream
        self._acknowledged = floor
        self._crash_points = crash_points
        self.meters: MeterSet = EMPTY

    async def apply(self, events: Sequence[Event], dead: Sequence[Dead]) -> Outcome:
        """Apply a batch in one transaction; when it returns, it is committed.

        Raises:
            TransientError: Nothing is applied; the same batch may succeed later.
            psycopg.Error: Nothing is applied; something in the batch cannot be stored.
        """
        ordered = sorted(events, key=lambda e: (e.key, e.message.stored_at, e.message.seq))
        counts: Counter[str] = Counter()
        invalid_counts: Counter[str] = Counter()
        with transient_errors():
            async with self._pool.connection() as connection:
                async with connection.transaction():
                    await connection.execute(LOCK)
                    meters = await current(connection, self.meters)
                    ordered, samples, unfit = await _fit(connection, ordered, meters)
                    dead = [*dead, *unfit]
                    accepted = await self._count(connection, ordered) if ordered else {}
                    await self._roll_up(connection, ordered, samples, accepted, invalid_counts)
                    repeated = [e for place, e in enumerate(ordered, 1) if place not in accepted]
                    if repeated:
                        counts += await self._tell_apart(connection, repeated)
                    await bury(connection, "metering", [Burial(d.message, d.code, d.detail) for d in dead])
                    await self._advance(
                        connection, [*(e.message for e in ordered), *(d.message for d in dead)]
                    )
                    self._crash_points.reach("apply.before_commit")
                self.meters = meters
        counts["accepted"] += len(accepted)
        counts["dead"] += len(dead)
        return Outcome(counts, invalid_counts)

    async def _count(self, connection: AsyncConnection, events: Sequence[Event]) -> dict[int, int]:
        """Place in the batch (from 1) and number of every event that counts."""
        rows = await (
            await connection.execute(
                _COUNT,
                {"target": self._target, "events": _ENCODER.encode(_rows(events)).decode()},
            )
        ).fetchall()
        return dict(rows)

    async def _roll_up(
        self,
        connection: AsyncConnection,
        events: Sequence[Event],
        samples: Sequence[Samples],
        accepted: dict[int, int],
        invalid_counts: Counter[str],
    ) -> None:
        rollup = Rollup()
        invalid: list[tuple[int, int, str, str]] = []
        for place, n in accepted.items():
            event = events[place - 1]
            order = stream_order(event.message.epoch, event.message.seq)
            for meter, sample in samples[place - 1]:
                if isinstance(sample, Sample):
                    rollup.add(meter, event.tenant, event.time, order, sample)
                else:
                    invalid.append((n, meter, sample.code, sample.message))
                    invalid_counts[sample.code] += 1
        await add_rollup(connection, rollup, invalid)

    async def _tell_apart(self, connection: AsyncConnection, repeated: Sequence[Event]) -> Counter[str]:
        """Redelivered (the very message that was counted), duplicate, or conflict."""
        rows = await (await connection.execute(_KNOWN, [[e.key for e in repeated]])).fetchall()
        known = {
            bytes(key): (n, bytes(payload_hash), stored_at, seq)
            for key, n, payload_hash, stored_at, seq in rows
        }
        duplicates: list[tuple[object, ...]] = []
        conflicts: list[tuple[object, ...]] = []
        counts: Counter[str] = Counter()
        for event in repeated:
            n, payload_hash, stored_at, seq = known[event.key]
            message = event.message
            place = (message.stream, message.epoch, message.seq, message.stored_at)
            if (stored_at, seq) == (message.received_at, message.seq):
                counts["redelivered"] += 1
            elif payload_hash == event.payload_hash:
                duplicates.append((*place, n))
            else:
                conflicts.append((*place, n, event.payload_hash, message.body))
        if duplicates:
            await connection.execute(_DUPLICATE, _columns(duplicates))
        if conflicts:
            await connection.execute(_CONFLICT, _columns(conflicts))
        counts["duplicate"] = len(duplicates)
        counts["conflict"] = len(conflicts)
        return counts

    async def _advance(self, connection: AsyncConnection, messages: Iterable[Message]) -> None:
        if self._acknowledged is not None:
            # Acknowledged is committed; so what this reads now is in the ledger, whoever committed it.
            floor = self._acknowledged()
            for epoch in {message.epoch for message in messages}:
                await connection.execute(_FLOOR, [self._stream, epoch, floor])
            return
        by_epoch: dict[datetime, list[int]] = {}
        for message in messages:
            by_epoch.setdefault(message.epoch, []).append(message.seq)
        for epoch, sequences in by_epoch.items():
            await connection.execute(_CURSOR, [self._stream, epoch, as_multirange(sequences)])


async def _fit(
    connection: AsyncConnection, events: Sequence[Event], meters: MeterSet
) -> tuple[list[Event], list[Samples], list[Dead]]:
    """The events that can be counted, what each adds to which meter, and those that are dead letters.

    A group that is too large to keep makes an event a dead letter, so that ledger and target agree about it.
    One that was counted already (by a release that kept any) is told apart as ever.
    """
    samples = [_samples(event, meters) for event in events]
    unfit = {place: why for place, found in enumerate(samples) if (why := _too_large(found))}
    if not unfit:
        return list(events), samples, []
    rows = await (
        await connection.execute(
            "select key from metering.seen where key = any(%s::bytea[])",
            [[events[place].key for place in unfit]],
        )
    ).fetchall()
    known = {bytes(row[0]) for row in rows}
    gone = {place for place in unfit if events[place].key not in known}
    kept = [place for place in range(len(events)) if place not in gone]
    dead = [Dead(events[place].message, GROUP_TOO_LARGE, unfit[place]) for place in sorted(gone)]
    return [events[place] for place in kept], [samples[place] for place in kept], dead


def _samples(event: Event, meters: MeterSet) -> Samples:
    in_force = meters.by_type.get(event.type)
    if not in_force:
        return ()
    data = event.decoded()
    return [(found.id, found.measure(data)) for found in in_force if found.meter.counts_at(event.time)]


def _too_large(samples: Samples) -> str:
    """What is said of a group that is too large; empty where none is."""
    for _, sample in samples:
        if isinstance(sample, Invalid) and sample.code == GROUP_TOO_LARGE:
            return sample.message
    return ""


def as_multirange(sequences: Iterable[int]) -> str:
    """Sequences as a Postgres int8multirange: 1, 2, 3, 7 are `{[1,4),[7,8)}`."""
    ranges: list[list[int]] = []
    for seq in sorted(set(sequences)):
        if ranges and ranges[-1][1] == seq:
            ranges[-1][1] = seq + 1
        else:
            ranges.append([seq, seq + 1])
    return "{" + ",".join(f"[{start},{end})" for start, end in ranges) + "}"


def _rows(events: Sequence[Event]) -> list[dict[str, object]]:
    """Events as one JSON document: a tenth of what arrays of parameters cost to write."""
    return [
        {
            "place": place,
            "key": event.key.hex(),
            "payload_hash": event.payload_hash.hex(),
            "tenant": event.tenant,
            "type": event.type,
            "source": event.source,
            "id": event.id,
            "time": event.time,
            "stored_at": event.message.received_at,
            "epoch": event.message.epoch,
            "seq": event.message.seq,
            "data": event.data.decode(),
            "traceparent": _sampled(event.message.headers),
        }
        for place, event in enumerate(events, 1)
    ]


def _columns(rows: Sequence[Sequence[object]]) -> list[list[object]]:
    return [list(column) for column in zip(*rows, strict=True)]


def _sampled(headers: dict[str, str]) -> str | None:
    """The traceparent of a sampled trace (W3C Trace Context section 3.2.2.5: the last flag bit)."""
    value = headers.get("traceparent")
    if value is None or len(value) != 55 or not value[53:].isalnum():
        return None
    try:
        return value if int(value[53:], 16) & 1 else None
    except ValueError:
        return None
