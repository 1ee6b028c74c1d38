"""From the door's 202 until the reads show it, at a thousand events a second."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterator
from typing import Any

import msgspec

from kgents_devstack.bench.offer import Line, at_rate, get, post
from kgents_devstack.bench.report import Figure
from kgents_devstack.bench.system import running

EVENTS_PER_SECOND = 1000
SECONDS = 20
BATCH = 20
CONNECTIONS = 32
WAIT_SECONDS = 30
MIB = 1024 * 1024


def measure_freshness() -> Iterator[Figure]:
    """A steady load; a few probes a second are watched until the reads have them."""
    services = ("metering", "reads", "api")
    with running(services=services) as stack:
        api = stack.service("api")
        latencies = sorted(
            asyncio.run(
                accepted_until_shown(
                    api.port,
                    stack.reads.port,
                    stack.keys["acme"],
                    per_second=EVENTS_PER_SECOND,
                    seconds=SECONDS,
                )
            )
        )
        memory = {name: stack.service(name).resident_bytes() / MIB for name in services}
    yield from [
        Figure("freshness: probes", len(latencies), ""),
        Figure("freshness: accept → queryable p50", latencies[len(latencies) // 2], "s"),
        Figure(
            "freshness: accept → queryable p99",
            latencies[int(len(latencies) * 0.99)],
            "s",
            target=1.0,
            at_most=True,
        ),
        *(
            Figure(f"freshness: {name} resident", value, "MiB", target=256, at_most=True)
            for name, value in memory.items()
        ),
    ]


async def accepted_until_shown(
    api: int, reads: int, key: str, *, per_second: int, seconds: int
) -> list[float]:
    """Seconds from each probe's 202 until the reads show it, in no order; one event in 200 is a probe.

    Raises:
        TooSlowError: The events could not be sent at this rate.
    """
    bearer = f"Bearer {key}"
    latencies: list[float] = []
    watchers: list[asyncio.Task[None]] = []

    async def send(line: Line, number: int) -> None:
        model = f"probe-{number}" if number % 10 == 0 else "m"
        events = [_event("m") for _ in range(BATCH - 1)] + [_event(model)]
        request = post(
            "/v1/events",
            msgspec.json.encode(events),
            authorization=bearer,
            content_type="application/cloudevents-batch+json",
        )
        status, answer = await line.ask(request)
        if status != 202:
            raise RuntimeError(f"{status}: {answer.decode(errors='replace')}")
        if model != "m":
            shown = _until_shown(reads, bearer, model, time.perf_counter(), latencies)
            watchers.append(asyncio.create_task(shown))

    await at_rate(api, per_second=per_second / BATCH, seconds=seconds, connections=CONNECTIONS, send=send)
    await asyncio.gather(*watchers)
    return latencies


async def _until_shown(reads: int, bearer: str, model: str, accepted: float, latencies: list[float]) -> None:
    """Ask the reads until they have it; a probe that is never shown took as long as was waited."""
    line = await Line.open(reads)
    request = get(
        f"/api/v1/meters/llm_calls/query?filterGroupBy[model]={model}&groupBy=model", authorization=bearer
    )
    while time.perf_counter() - accepted < WAIT_SECONDS:
        status, body = await line.ask(request)
        if status == 200 and msgspec.json.decode(body)["data"]:
            break
        await asyncio.sleep(0.02)
    latencies.append(time.perf_counter() - accepted)
    line.close()


def _event(model: str) -> dict[str, Any]:
    return {
        "specversion": "1.0",
        "id": uuid.uuid4().hex,
        "source": "bench",
        "type": "llm.tokens",
        "data": {"tokens": 1, "model": model, "direction": "in"},
    }
