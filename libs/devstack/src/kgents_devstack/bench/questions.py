"""Questions of a grown ledger, and counting beside the largest: 300,000 rows while 2,000 events/s come."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

import httpx
import psycopg

from kgents_devstack.bench.freshness import accepted_until_shown
from kgents_devstack.bench.offer import TooSlowError
from kgents_devstack.bench.report import Figure
from kgents_devstack.bench.system import running
from kgents_devstack.stack import Stack

MINUTES = 300_000
TIMES = 5
EVENTS_PER_SECOND = 2000
# Where the machine cannot offer that much, a figure that only informs.
LESS_PER_SECOND = 100
SECONDS = 20

_FILL = """
insert into metering.rollup
    (meter, tenant, minute, grp_key, grp, cnt, sum, min, max, last_time, last_n, last_value)
select m.id, 'acme', date_trunc('minute', now()) - n * interval '1 minute', '\\x01', '{"model": "m"}', 1,
       n, n, n, now(), n, n
from metering.meter m, generate_series(10, %s) n where m.slug = %s and m.deleted_at is null
"""
_MINUTES_ALONE = """
select sum(sum) from metering.rollup r join metering.meter m on m.id = r.meter
where m.slug = 'tokens' and m.deleted_at is null and tenant = 'acme'
"""


def measure_questions() -> Iterator[Figure]:
    """Each question beside the same sum over minutes alone; then freshness while the largest is asked."""
    with running(services=("metering", "reads", "api")) as stack:
        with psycopg.connect(stack.database_url, autocommit=True) as connection:
            connection.execute(_FILL, [MINUTES + 9, "tokens"])
            connection.execute("vacuum analyze metering.rollup, metering.rollup_hour, metering.rollup_day")
            alone = _median(lambda: connection.execute(_MINUTES_ALONE).fetchall())
        yield Figure(f"questions: a total over {MINUTES:,} minutes, in SQL over minutes alone", alone, "ms")
        with _client(stack) as client:
            for what, parameters in (
                ("the same total", ""),
                ("a value for each day", "windowSize=DAY"),
                ("a value for each day of Berlin", "windowSize=DAY&windowTimeZone=Europe/Berlin"),
                ("a value for each day of Kolkata", "windowSize=DAY&windowTimeZone=Asia/Kolkata"),
                ("a value for each hour", "windowSize=HOUR"),
            ):
                yield Figure(f"questions: {what}", _median(partial(_ask, client, parameters)), "ms")
        yield from _counting_beside(stack)


def _counting_beside(stack: Stack) -> Iterator[Figure]:
    rate = EVENTS_PER_SECOND
    target: float | None = 1.0
    try:
        rows, seconds, latencies = asyncio.run(_beside(stack, rate))
    except TooSlowError:
        rate, target = LESS_PER_SECOND, None
        rows, seconds, latencies = asyncio.run(_beside(stack, rate))
    yield Figure("questions: rows of the largest answer", rows, "")
    yield Figure("questions: the largest answer takes", seconds, "s")
    yield Figure("questions: probes beside it", len(latencies), "")
    p99 = latencies[int(len(latencies) * 0.99)]
    what = f"questions: accept → queryable p99 beside it, {rate} events/s"
    yield Figure(what, p99, "s", target=target, at_most=True)


def _median(work: Callable[[], object]) -> float:
    taken = []
    for _ in range(TIMES):
        began = time.perf_counter()
        work()
        taken.append((time.perf_counter() - began) * 1000)
    return statistics.median(taken)


def _client(stack: Stack) -> httpx.Client:
    headers = {"authorization": f"Bearer {stack.keys['acme']}"}
    return httpx.Client(base_url=stack.reads.url, headers=headers, timeout=60)


def _ask(client: httpx.Client, parameters: str) -> bytes:
    return client.get(f"/api/v1/meters/tokens/query?{parameters}").raise_for_status().content


async def _beside(stack: Stack, rate: int) -> tuple[int, float, list[float]]:
    """The largest question again and again while events come and probes look for theirs."""
    rows, taken = 0, [0.0]

    async def ask_on() -> None:
        nonlocal rows
        headers = {"authorization": f"Bearer {stack.keys['acme']}"}
        async with httpx.AsyncClient(base_url=stack.reads.url, headers=headers, timeout=120) as client:
            while True:
                began = time.perf_counter()
                answer = await client.get("/api/v1/meters/tokens/query?windowSize=MINUTE")
                taken.append(time.perf_counter() - began)
                rows = answer.raise_for_status().content.count(b'"windowStart"')

    asking = asyncio.create_task(ask_on())
    try:
        latencies = await accepted_until_shown(
            stack.service("api").port,
            stack.reads.port,
            stack.keys["acme"],
            per_second=rate,
            seconds=SECONDS,
        )
        while not rows and not asking.done():
            await asyncio.sleep(0.1)
    finally:
        asking.cancel()
    if asking.done() and not asking.cancelled():
        asking.result()
    return rows, max(taken), sorted(latencies)
