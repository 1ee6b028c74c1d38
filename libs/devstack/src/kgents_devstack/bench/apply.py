"""How fast one metering process applies a backlog, beside a bare loop that reads, decodes and acks it."""

from __future__ import annotations

import asyncio
import statistics
import time
import uuid
from collections.abc import Iterator

import msgspec
import nats
import psycopg
from nats.js.api import ConsumerConfig

from kgents_devstack.bench.levels import measure_levels
from kgents_devstack.bench.report import Figure
from kgents_devstack.bench.system import running
from kgents_devstack.stack import Stack

EVENTS = 60_000
ROUNDS = 3
FETCH = 500
IN_FLIGHT = 2000
MIB = 1024 * 1024


def measure_apply() -> Iterator[Figure]:
    """Rounds of both, interleaved; the memory after a round more."""
    floors: list[float] = []
    rates: list[float] = []
    with running(services=()) as stack:
        for number in range(ROUNDS):
            asyncio.run(_publish(stack.nats.url, number))
            floors.append(asyncio.run(_bare_loop(stack.nats.url, number)))
            rates.append(_applied(stack, (number + 1) * EVENTS))
        floor, rate = statistics.median(floors), statistics.median(rates)
        yield Figure("apply: bare loop (read, decode, ack)", floor, "events/s")
        yield Figure("apply: one metering process", rate, "events/s")
        # 10,000 events/s where the bare loop did 26,000.
        yield Figure("apply: ratio to the bare loop", rate / floor, "×", target=0.38)
        yield Figure(
            "apply: metering resident after the load", _memory(stack), "MiB", target=256, at_most=True
        )
        if stack.postgres.is_running:
            yield from measure_levels(stack.postgres.create_database("levels"))


async def _publish(url: str, number: int) -> None:
    """A backlog of different events of twenty tenants over an hour."""
    client = await nats.connect(url)
    jetstream = client.jetstream(publish_async_max_pending=IN_FLIGHT)
    futures = []
    for index in range(EVENTS):
        body = msgspec.json.encode(
            {
                "specversion": "1.0",
                "id": uuid.uuid4().hex,
                "source": f"agents/{index % 50}",
                "type": "llm.tokens",
                "subject": f"t{index % 20}",
                "time": f"2026-11-23T{number:02}:{index % 60:02}:{index % 59:02}Z",
                "data": {"tokens": index % 977, "model": f"model-{index % 5}", "direction": "in"},
            }
        )
        futures.append(await jetstream.publish_async(f"agentese.t{index % 20}.llm.tokens", body))
        if len(futures) >= IN_FLIGHT:
            await asyncio.gather(*futures)
            futures.clear()
    await asyncio.gather(*futures)
    await client.close()


async def _bare_loop(url: str, number: int) -> float:
    """Events per second of a pull consumer that decodes and acknowledges each message, and does nothing."""
    client = await nats.connect(url)
    jetstream = client.jetstream()
    subscription = await jetstream.pull_subscribe(
        "agentese.>",
        durable=f"bare-{number}",
        stream="AGENTESE",
        config=ConsumerConfig(opt_start_seq=number * EVENTS + 1, deliver_policy="by_start_sequence"),  # type: ignore[arg-type]
    )
    began, seen = time.perf_counter(), 0
    while seen < EVENTS:
        for message in await subscription.fetch(FETCH, timeout=5):
            msgspec.json.decode(message.data)
            await message.ack()
            seen += 1
    await client.flush()
    rate = EVENTS / (time.perf_counter() - began)
    await jetstream.delete_consumer("AGENTESE", f"bare-{number}")
    await client.close()
    return rate


def _applied(stack: Stack, until: int) -> float:
    """Events per second from the first commit to the last, of one process started for it."""
    with (
        stack.make_service("metering", OPENMETER_BASE_URL="http://127.0.0.1:9"),
        psycopg.connect(stack.database_url, autocommit=True) as connection,
    ):
        first: tuple[float, int] | None = None
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            row = connection.execute("select count(*) from metering.event").fetchone()
            count = row[0] if row else 0
            now = time.perf_counter()
            if first is None and count > until - EVENTS:
                first = (now, count)
            if count >= until and first is not None:
                return (count - first[1]) / (now - first[0])
            time.sleep(0.05)
    raise RuntimeError("the backlog was not applied within five minutes")


def _memory(stack: Stack) -> float:
    """Resident MiB of a metering process after it applied a round more."""
    asyncio.run(_publish(stack.nats.url, ROUNDS))
    with (
        stack.make_service("metering", OPENMETER_BASE_URL="http://127.0.0.1:9") as metering,
        psycopg.connect(stack.database_url, autocommit=True) as connection,
    ):
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            row = connection.execute("select count(*) from metering.event").fetchone()
            if row and row[0] >= (ROUNDS + 1) * EVENTS:
                break
            time.sleep(0.2)
        return metering.resident_bytes() / MIB
