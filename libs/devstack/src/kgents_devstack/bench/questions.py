"""Questions of a grown ledger, and counting beside the largest: 300,000 rows while 2,000 events/s come.

The events come over HTTP in batches of twenty, as a platform's own backend sends them; probes ask the same
reads that are busy with the large answer. First the same load without the question: where that is too slow
already, the machine is, and nothing is said of the question.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import httpx
import psycopg

from kgents_devstack.bench.cores import Cores
from kgents_devstack.bench.freshness import accepted_until_shown
from kgents_devstack.bench.offer import TooSlowError, get
from kgents_devstack.bench.report import Figure
from kgents_devstack.bench.system import running
from kgents_devstack.stack import Stack

MINUTES = 300_000
TIMES = 5
EVENTS_PER_SECOND = 2000
SECONDS = 20
TARGET_SECONDS = 1.0
SERVICES = ("metering", "reads", "api")
_END = b"0\r\n\r\n"

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
    with running(services=SERVICES) as stack:
        with psycopg.connect(stack.database_url, autocommit=True) as connection:
            _fill(connection)
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
        yield from _counting_beside(stack, "questions")


def measure_questions_unsynced() -> Iterator[Figure]:
    """Counting beside the largest question where NATS leaves syncing to the kernel, as an R3 stream may.

    For a disk that cannot sync 2,000 messages a second: what is measured is the question, not the disk.
    """
    with running(services=SERVICES, sync_always=False) as stack:
        with psycopg.connect(stack.database_url, autocommit=True) as connection:
            _fill(connection)
        yield from _counting_beside(stack, "unsynced questions")


def _fill(connection: psycopg.Connection) -> None:
    connection.execute(_FILL, [MINUTES + 9, "tokens"])
    connection.execute("vacuum analyze metering.rollup, metering.rollup_hour, metering.rollup_day")
    connection.execute("checkpoint")  # what this wrote is on the disk before anything is measured


def _counting_beside(stack: Stack, name: str) -> Iterator[Figure]:
    what, load = f"{name}: accept → queryable p99", f"{EVENTS_PER_SECOND:,} events/s"
    cores = Cores(stack, SERVICES)
    alone = _p99(asyncio.run(_offered(stack)))
    yield Figure(f"{what} without a question, {load}", alone, "s")
    used = cores.used()
    yield from (Figure(f"{name}: {process}, {load}", share, "cores") for process, share in used.items())
    ours = sum(share for process, share in used.items() if process not in ("load", "openmeter"))
    yield Figure(f"{name}: one event costs, all of ours", ours / EVENTS_PER_SECOND * 1e6, "µs of a core")
    if alone > TARGET_SECONDS / 2:
        raise TooSlowError(f"p99 is {alone:.2g} s at {load} without any question")
    cores = Cores(stack, SERVICES)
    try:
        rows, seconds, latencies = asyncio.run(_beside(stack))
    except TooSlowError as error:  # alone it was not: the question is to blame
        raise RuntimeError(f"the large answer slows down who sends: {error}") from error
    yield Figure(f"{name}: rows of the largest answer", rows, "")
    yield Figure(f"{name}: the largest answer takes", seconds, "s")
    used = cores.used()
    yield from (Figure(f"{name}: {process} beside it", share, "cores") for process, share in used.items())
    yield Figure(f"{name}: probes beside it", len(latencies), "")
    yield Figure(f"{what} beside it, {load}", _p99(latencies), "s", target=TARGET_SECONDS, at_most=True)


def _p99(latencies: Sequence[float]) -> float:
    return sorted(latencies)[int(len(latencies) * 0.99)]


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


async def _offered(stack: Stack) -> list[float]:
    return await accepted_until_shown(
        stack.service("api").port,
        stack.reads.port,
        stack.keys["acme"],
        per_second=EVENTS_PER_SECOND,
        seconds=SECONDS,
    )


async def _beside(stack: Stack) -> tuple[int, float, list[float]]:
    """The largest question again and again while events come and probes look for theirs."""
    rows, taken = 0, [0.0]

    async def ask_on() -> None:
        nonlocal rows
        while True:
            began = time.perf_counter()
            rows = await _rows_of_largest(stack)
            taken.append(time.perf_counter() - began)

    asking = asyncio.create_task(ask_on())
    try:
        latencies = await _offered(stack)
        while not rows and not asking.done():
            await asyncio.sleep(0.1)
    finally:
        asking.cancel()
    if asking.done() and not asking.cancelled():
        asking.result()
    return rows, max(taken), latencies


async def _rows_of_largest(stack: Stack) -> int:
    """Its rows, counted in the bytes as they come: a client library would cost more than what it measures."""
    reader, writer = await asyncio.open_connection("127.0.0.1", stack.reads.port)
    bearer = f"Bearer {stack.keys['acme']}"
    writer.write(
        get("/api/v1/meters/tokens/query?windowSize=MINUTE", authorization=bearer, connection="close")
    )
    head = await reader.readuntil(b"\r\n\r\n")
    if b" 200 " not in head.splitlines()[0]:
        raise RuntimeError(head.decode())
    rows, kept = 0, b""
    while piece := await reader.read(1 << 20):
        kept += piece
        rows += kept.count(b'"windowStart"')
        kept = kept[-len(b'"windowStart') :]
    if b"chunked" in head and not kept.endswith(_END):
        raise RuntimeError("the answer ended early")
    writer.close()
    return rows
