"""From the door's 202 until the reads show it, at a thousand events a second."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any

import httpx
import msgspec

from kgents_devstack.bench.report import Figure
from kgents_devstack.bench.system import running

EVENTS_PER_SECOND = 1000
SECONDS = 20
BATCH = 20
MIB = 1024 * 1024


def measure_freshness() -> list[Figure]:
    """A steady load; a few probes a second are watched until the reads have them."""
    services = ("metering", "reads", "api")
    with running(services=services) as stack:
        api = stack.service("api")
        latencies = sorted(asyncio.run(_measure(api.url, stack.reads.url, stack.keys["acme"])))
        memory = {name: stack.service(name).resident_bytes() / MIB for name in services}
    return [
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


async def _measure(api: str, reads_url: str, key: str) -> list[float]:
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    latencies: list[float] = []
    watchers: set[asyncio.Task[None]] = set()
    async with (
        httpx.AsyncClient(base_url=api, headers=headers, timeout=30) as door,
        httpx.AsyncClient(base_url=reads_url, headers=headers, timeout=30) as reads,
    ):

        async def send(number: int) -> None:
            model = f"probe-{number}" if number % 10 == 0 else "m"
            events = [_event("m") for _ in range(BATCH - 1)] + [_event(model)]
            (await door.post("/v1/events", content=msgspec.json.encode(events))).raise_for_status()
            if model != "m":
                await _until_shown(reads, model, time.perf_counter(), latencies)

        began = time.perf_counter()
        for number in range(SECONDS * EVENTS_PER_SECOND // BATCH):
            wait = began + number * BATCH / EVENTS_PER_SECOND - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            task = asyncio.create_task(send(number))
            watchers.add(task)
            task.add_done_callback(watchers.discard)
        await asyncio.gather(*watchers)
    return latencies


async def _until_shown(reads: httpx.AsyncClient, model: str, accepted: float, latencies: list[float]) -> None:
    path = f"/api/v1/meters/llm_calls/query?filterGroupBy[model]={model}&groupBy=model"
    while time.perf_counter() - accepted < 30:
        if (await reads.get(path)).json()["data"]:
            break
        await asyncio.sleep(0.02)
    latencies.append(time.perf_counter() - accepted)


def _event(model: str) -> dict[str, Any]:
    return {
        "specversion": "1.0",
        "id": uuid.uuid4().hex,
        "source": "bench",
        "type": "llm.tokens",
        "data": {"tokens": 1, "model": model, "direction": "in"},
    }
