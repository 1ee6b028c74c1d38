"""A read costs at most so many rows, events, seconds and places, and says so; it is never cut in silence."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool
from starlette.applications import Starlette

from kgents_common import database, keyring
from kgents_common.clock import SystemClock
from kgents_common.telemetry import new_registry
from kgents_metering.handlers import reads
from kgents_metering.handlers.authorization import record_by_key
from kgents_metering.handlers.reads.admission import Admission, BusyError
from kgents_metering.metrics import ReadMetrics
from kgents_metering.sinks.ledger.apply import Ledger
from kgents_metering.sinks.ledger.reads import ReadLimits, UsageReads

from .messages import NOON, event

MINUTES = 1200
# Seconds: what ends a read that nothing else ends.
LONG = 20
MakeApp = Callable[..., Awaitable[tuple[Starlette, dict[str, str]]]]


@pytest.fixture
async def make_app(database_url: str, ledger: Ledger, tmp_path: Path) -> AsyncIterator[MakeApp]:
    """Reads with limits of their own over 1,200 minutes of one event each, of two models by turns."""
    made = [
        event(
            seq,
            f"e{seq}",
            time=(NOON - timedelta(minutes=seq)).isoformat(),
            data={"tokens": seq, "model": f"m{seq % 2}"},
        )
        for seq in range(1, MINUTES + 1)
    ]
    await ledger.apply(made, [])
    pools: list[AsyncConnectionPool[AsyncConnection]] = []
    key, record = keyring.mint("acme", keyring.TENANT_SCOPES)
    keyring.write(tmp_path / "keys.json", [record])

    async def make(
        admission: Admission | None = None, statement_seconds: float = 10, **limits: Any
    ) -> tuple[Starlette, dict[str, str]]:
        pool = database.make_pool(
            database_url, application="reads", statement_timeout_seconds=statement_seconds, is_read_only=True
        )
        await pool.open()
        pools.append(pool)
        usage = UsageReads(pool, ReadLimits(statement_seconds=statement_seconds, **limits))
        record_of = record_by_key(keyring.Keyring(tmp_path / "keys.json"))
        gate = reads.Gate(record_of, admission or Admission(), ReadMetrics(new_registry()))
        routes = reads.routes(usage, gate, SystemClock())
        app = Starlette(routes=routes, exception_handlers=reads.EXCEPTION_HANDLERS)
        return app, {"authorization": f"Bearer {key}"}

    yield make
    for pool in pools:
        await pool.close()


async def get(
    app: Starlette, headers: dict[str, str], parameters: str, slug: str = "tokens"
) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://reads") as client:
        return await client.get(f"/api/v1/meters/tokens/query?{parameters}", headers=headers)


async def test_a_long_answer_comes_whole_and_in_pieces(make_app: MakeApp) -> None:
    """Rule: rows are made a few hundred at a time, so that others are served between them."""
    app, headers = await make_app()
    sent: list[bytes] = []
    scope = _scope("windowSize=MINUTE", headers)

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))

    await app(scope, _never_gone(), send)
    assert len([piece for piece in sent if piece]) == 4  # 500, 500, 200 rows, and the end
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://reads") as client:
        url = "/api/v1/meters/tokens/query?windowSize=MINUTE"
        rows = (await client.get(url, headers=headers)).json()["data"]
        lines = (await client.get(url, headers={**headers, "accept": "text/csv"})).text.splitlines()
    assert [row["value"] for row in rows] == list(range(MINUTES, 0, -1))
    assert len(lines) == MINUTES + 1


async def test_too_many_rows_are_refused_with_how_to_narrow(make_app: MakeApp) -> None:
    """Rule: at the limit it answers, one row above it is 422 before the first row."""
    app, headers = await make_app(rows=MINUTES)
    assert (await get(app, headers, "windowSize=MINUTE")).status_code == 200
    app, headers = await make_app(rows=MINUTES - 1)
    answer = await get(app, headers, "windowSize=MINUTE")
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    assert "1199 rows" in answer.json()["detail"]
    assert "windowSize" in answer.json()["detail"]
    assert (await get(app, headers, "windowSize=HOUR")).status_code == 200


async def test_too_many_values_of_a_key_are_refused(make_app: MakeApp) -> None:
    """Rule: what a filter may choose from is an answer like another."""
    path = "/api/v1/meters/tokens/group-by/model/values?from=2026-11-22T00:00:00Z"
    for rows, status in ((2, 200), (1, 422)):
        app, headers = await make_app(rows=rows)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://reads") as client:
            answer = await client.get(path, headers=headers)
        assert answer.status_code == status
        assert answer.json() == ["m0", "m1"] if rows == 2 else "more than 1 values" in answer.text


async def test_a_cut_minute_is_measured_whole_or_refused(make_app: MakeApp) -> None:
    """Rule: what a query cuts is never measured in part."""
    cut = f"from={(NOON - timedelta(minutes=3)).isoformat().replace('+00:00', 'Z')}"
    cut += f"&to={(NOON - timedelta(seconds=59)).isoformat().replace('+00:00', 'Z')}"
    app, headers = await make_app(edge_events=1)
    assert [row["value"] for row in (await get(app, headers, cut)).json()["data"]] == [1 + 2 + 3]
    app, headers = await make_app(edge_events=0)
    answer = await get(app, headers, cut)
    assert answer.status_code == 422
    assert "whole minutes" in answer.json()["detail"]


async def test_a_read_that_takes_too_long_is_refused(
    make_app: MakeApp, pool: AsyncConnectionPool[AsyncConnection]
) -> None:
    """Rule: a statement has its time, an answer of many, too; then it is 422 with how to narrow, not 503 and
    the same again."""
    long_statement, headers = await make_app(Admission(seconds=LONG), statement_seconds=0.2)
    long_answer, _ = await make_app(Admission(seconds=0.2), statement_seconds=LONG)
    async with pool.connection() as blocking:
        await blocking.execute("lock table metering.rollup in access exclusive mode")
        of_statement = await get(long_statement, headers, "windowSize=MINUTE")
        of_answer = await get(long_answer, headers, "windowSize=MINUTE")
    assert (of_statement.status_code, of_answer.status_code) == (422, 422)
    assert "the query took more than 0.2 s: narrow it" in of_statement.json()["detail"]
    assert "the answer took more than 0.2 s: narrow it" in of_answer.json()["detail"]


async def test_a_caller_who_goes_ends_the_work_in_postgres(
    make_app: MakeApp, pool: AsyncConnectionPool[AsyncConnection], database_url: str
) -> None:
    """Rule: the statement of a caller who has gone is cancelled, and his place is free."""
    admission = Admission()
    app, headers = await make_app(admission)
    gone = asyncio.Event()
    sent: list[Any] = []

    async def receive() -> Any:
        if not gone.is_set() and not asked:
            asked.append(True)
            return {"type": "http.request", "body": b"", "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    asked: list[bool] = []
    async with pool.connection() as blocking:
        await blocking.execute("lock table metering.rollup in access exclusive mode")
        asking = asyncio.create_task(app(_scope("", headers), receive, send))
        async with await AsyncConnection.connect(database_url, autocommit=True) as looking:
            while await _active(looking) != 1:
                await asyncio.sleep(0.01)
            gone.set()
            await asking
            assert await _active(looking) == 0
    assert sent == [], "it waited for its answer, and gave it to nobody"
    assert admission.running == 0


async def test_a_tenant_has_its_places_and_the_others_theirs() -> None:
    """Rule: in the order of asking; a tenant's line is bounded, and nobody stands in another's."""
    admission = Admission(running_per_tenant=2, waiting_per_tenant=3)
    release = asyncio.Event()
    order: list[int] = []

    async def read(tenant: str, number: int) -> None:
        async with admission.place(tenant):
            order.append(number)
            await release.wait()

    reads_of_acme = [asyncio.create_task(read("acme", number)) for number in range(5)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (admission.running, admission.waiting, order) == (2, 3, [0, 1])
    with pytest.raises(BusyError):
        await read("acme", 5)
    other = asyncio.create_task(read("globex", 6))
    await asyncio.sleep(0)
    assert admission.running == 3
    reads_of_acme[2].cancel()  # one that waits goes: the next moves up
    with contextlib.suppress(asyncio.CancelledError):
        await reads_of_acme[2]
    release.set()
    await asyncio.gather(other, *(r for r in reads_of_acme if not r.cancelled()))
    assert order == [0, 1, 6, 3, 4]
    assert (admission.running, admission.waiting) == (0, 0)


async def test_who_waits_too_long_is_told_to_come_again() -> None:
    """Rule: a place that does not come in time is a refusal, and nothing is left of the wait."""
    admission = Admission(running_per_tenant=1, wait_seconds=0.01)
    async with admission.place("acme"):
        with pytest.raises(BusyError):
            async with asyncio.timeout(LONG), admission.place("acme"):
                pass
        assert (admission.running, admission.waiting) == (1, 0)
    assert admission.running == 0


def _scope(parameters: str, headers: dict[str, str]) -> dict[str, Any]:
    return {
        "type": "http",
        "method": "GET",
        "path": "/api/v1/meters/tokens/query",
        "query_string": parameters.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }


def _never_gone() -> Callable[[], Awaitable[Any]]:
    sent: list[bool] = []

    async def receive() -> Any:
        if not sent:
            sent.append(True)
            return {"type": "http.request", "body": b"", "more_body": False}
        await asyncio.Event().wait()
        return None

    return receive


async def _active(connection: AsyncConnection) -> int:
    row = await (
        await connection.execute(
            "select count(*) from pg_stat_activity where datname = current_database()"
            " and application_name = 'reads' and state = 'active' and wait_event_type = 'Lock'"
        )
    ).fetchone()
    return int(row[0]) if row else 0
