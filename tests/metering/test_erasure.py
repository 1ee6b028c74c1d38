"""A tenant's personal data is erased, and the books stay right: totals, duplicates and what is owed."""

from __future__ import annotations

from argparse import Namespace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import nats
import pytest
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from kgents_common import rfc3339, streams
from kgents_metering.handlers import command_erase
from kgents_metering.model.erasure import reduced
from kgents_metering.model.event import Event, classify
from kgents_metering.model.meters import parse_path
from kgents_metering.model.query import parse_query
from kgents_metering.settings import MeteringSettings
from kgents_metering.sinks.ledger.apply import Ledger
from kgents_metering.sinks.ledger.erasing import Erasing, Scope
from kgents_metering.sinks.ledger.reads import UsageReads

from .messages import body, dead, event, message

Pool = AsyncConnectionPool[AsyncConnection]
ALL = datetime(2027, 1, 1, tzinfo=UTC)
SECRET = "erika@example.org"


def personal(seq: int, event_id: str, **changes: Any) -> Any:
    data = {"tokens": "0.10", "model": "m1", "who": SECRET, "prompt": {"text": SECRET}, **changes}
    return event(seq, event_id, source=f"agents/{SECRET}", data=data)


async def erase(pool: Pool, scope: Scope) -> tuple[int, int, int]:
    erasing = Erasing(pool)
    events = conflicts = 0
    for _ in range(10):
        found = await erasing.events(scope)
        if not found.rows:
            break
        conflicts += await erasing.erase_events(found)
        events += len(found.rows)
    assert not found.rows, "what is erased is found again"
    letters = await erasing.letters(scope)
    await erasing.erase_letters(letters, "asked for")
    await erasing.record(scope, actor="test", reason="asked for", counts=(events, conflicts, 0, 0))
    return events, conflicts, len(letters.rows)


async def everything(pool: Pool) -> str:
    """Every row of every table of the schema, as text."""
    found = ""
    async with pool.connection() as connection:
        rows = await (
            await connection.execute("select tablename from pg_tables where schemaname = 'metering'")
        ).fetchall()
        for (name,) in rows:
            table = await (
                await connection.execute(f"select t::text from metering.{name} t".encode())
            ).fetchall()
            found += "\n".join(row[0] for row in table)
    return found


async def usage(pool: Pool, slug: str, **span: str) -> list[Decimal]:
    reads = UsageReads(pool)
    meter = await reads.meter(slug)
    assert meter is not None
    rows = await reads.query(
        meter, "acme", parse_query({k: [v] for k, v in span.items()}, meter.meter, ("acme",))
    )
    return [row.value for row in rows]


async def all_usage(pool: Pool) -> list[list[Decimal]]:
    """Of every meter, whole and of a part of a minute."""
    spans: list[dict[str, str]] = [{}, {"from": "2026-11-23T11:59:10Z", "to": "2026-11-23T11:59:50Z"}]
    return [await usage(pool, slug, **span) for slug in ("tokens", "calls", "models") for span in spans]


async def identities(pool: Pool) -> list[tuple[Any, ...]]:
    """Of every event what OpenMeter knows it by, and where and when it was."""
    async with pool.connection() as connection:
        rows = await connection.execute(
            "select n, key, tenant, type, time, stored_at, epoch, seq from metering.event order by n"
        )
        return await rows.fetchall()


async def test_what_is_personal_is_gone_and_the_books_are_right(ledger: Ledger, pool: Pool) -> None:
    """Rule: keys, times and measured values stay; a query that measures events again says the same."""
    await ledger.apply([personal(i, f"{SECRET}-{i}") for i in range(1, 11)], [])
    await ledger.apply(
        [personal(20, f"{SECRET}-1", tokens=9), event(30, "other")], [dead(40, SECRET.encode())]
    )
    before, known = await all_usage(pool), await identities(pool)

    assert await erase(pool, Scope("acme", f"agents/{SECRET}", ALL)) == (10, 1, 0)
    assert await erase(pool, Scope("acme", None, ALL)) == (1, 0, 1)
    text = await everything(pool)
    assert SECRET not in text
    assert SECRET.encode().hex() not in text

    assert await all_usage(pool) == before
    assert await identities(pool) == known
    again = await ledger.apply([personal(50, f"{SECRET}-1"), personal(51, f"{SECRET}-2", tokens=1)], [])
    assert (again.counts["duplicate"], again.counts["conflict"], again.counts["accepted"]) == (1, 1, 0)
    assert await erase(pool, Scope("acme", None, ALL)) == (1, 1, 0), "the contradiction that came since"
    assert await erase(pool, Scope("acme", None, ALL)) == (0, 0, 0)
    assert SECRET.encode().hex() not in await everything(pool)


async def test_the_command_deletes_what_the_stream_holds(
    ledger: Ledger, pool: Pool, nats_url: str, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rule: of the events of the scope that the ledger has, and nothing else of the stream."""
    client = await nats.connect(nats_url)
    await streams.ensure(client, streams=streams.scaled(streams.STREAMS, 64 * 1024**2))
    for number in range(1, 6):
        await client.jetstream().publish("agentese.acme.llm.tokens", body(f"e{number}"))
    epoch = rfc3339.moment((await streams.request(client, "STREAM.INFO.AGENTESE"))["created"])
    found = [classify(message(seq, body(f"e{seq}"), epoch=epoch)) for seq in (1, 2, 4)]
    await ledger.apply([one for one in found if isinstance(one, Event)], [])
    settings = MeteringSettings(
        nats_servers=(nats_url,), database_url=database_url, meters_file=Path("m"), keyring_file=Path("k")
    )
    asked = Namespace(tenant="acme", source=None, before=None, reason="asked for")
    assert await command_erase._erase(asked, settings, pool) == 0
    assert "3 events, 0 conflicts, 0 dead letters; 3 messages" in capsys.readouterr().out
    state = (await client.jetstream().stream_info("AGENTESE")).state
    await client.close()
    assert (state.messages, state.first_seq) == (2, 3)


async def test_the_command_finds_messages_in_a_stream_that_a_restore_made_anew(
    ledger: Ledger, pool: Pool, nats_url: str, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rule: a message is known by what it says, a dead letter of an earlier run by when it was stored: age
    and sequences of a restored stream are others, and a run before the restore has left no row to find."""
    client = await nats.connect(nats_url)
    ids = ("e3", "other", "e1", "e2", "e1")
    found = [classify(message(seq, body(f"e{seq}"))) for seq in (1, 2, 3)]
    await ledger.apply([one for one in found if isinstance(one, Event)], [dead(9, b"{ erika")])
    settings = MeteringSettings(
        nats_servers=(nats_url,), database_url=database_url, meters_file=Path("m"), keyring_file=Path("k")
    )
    asked = Namespace(tenant="acme", source=None, before=None, reason="asked for")
    restored = {"Kgents-Original-Time": message(9, b"").stored_at.isoformat()}
    for told in (
        "3 events, 0 conflicts, 1 dead letters; 5 messages",
        "0 events, 0 conflicts, 0 dead letters; 5",
    ):
        await streams.ensure(client, streams=streams.scaled(streams.STREAMS, 64 * 1024**2))
        for number in ids:
            await client.jetstream().publish("agentese.acme.llm.tokens", body(number))
        await client.jetstream().publish("agentese.globex.llm.tokens", body("e1", subject="globex"))
        await client.jetstream().publish("agentese.acme.llm.tokens", b"{ erika", headers=restored)
        assert await command_erase._erase(asked, settings, pool) == 0
        assert told in capsys.readouterr().out
        assert (await client.jetstream().stream_info("AGENTESE")).state.messages == len(["other", "globex"])
        await client.jetstream().delete_stream("AGENTESE")
    await client.close()


async def test_only_the_scope_is_erased(ledger: Ledger, pool: Pool) -> None:
    """Rule: another tenant's and later events stay as they are."""
    await ledger.apply([personal(1, "a"), personal(2, "b", who="x")], [])
    none = datetime(2026, 11, 23, 11, 0, tzinfo=UTC)
    assert await erase(pool, Scope("acme", None, none)) == (0, 0, 0)
    assert await erase(pool, Scope("acm_", None, ALL)) == (0, 0, 0)
    assert SECRET in await everything(pool)


@pytest.mark.parametrize(
    ("data", "paths", "left"),
    [
        ('{"a":1,"b":"x"}', ["$.a"], '{"a":1}'),
        ('{"a":{"b":0.10,"c":"x"},"d":[1]}', ["$.a.b", "$.e"], '{"a":{"b":0.10}}'),
        ('{"a":[{"k":"x"},{"k":1,"y":2}]}', ["$.a[1].k"], '{"a":[null,{"k":1}]}'),
        ('{"a":[[1,2],[3,4]]}', ["$.a[1][0]", "$.a[0][1]"], '{"a":[[null,2],[3]]}'),
        ('{"a":null,"b":2}', ["$.a"], '{"a":null}'),
        ('{"a":1}', [], "{}"),
    ],
)
def test_what_is_left_is_what_is_measured(data: str, paths: list[str], left: str) -> None:
    """Rule: each value as it was written, at its place, and nothing beside it."""
    steps = [path for text in paths if (path := parse_path(text)) is not None]
    assert reduced(data, steps) == left
