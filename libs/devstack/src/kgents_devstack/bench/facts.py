"""From the door's 200 for a webhook until its fact is on the bus, at two hundred events a second."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterator
from typing import Any

import msgspec
import nats
from nats.aio.msg import Msg

from kgents_devstack.bench.load import WEBHOOKS, webhook
from kgents_devstack.bench.offer import Line, at_rate, post
from kgents_devstack.bench.report import Figure
from kgents_devstack.bench.system import running
from kgents_devstack.stack import Stack
from kgents_devstack.stripe import objects

EVENTS_PER_SECOND = 200
SECONDS = 20
CONNECTIONS = 64
MIB = 1024 * 1024


def measure_facts() -> Iterator[Figure]:
    """Every event starts a subscription of its own."""
    with running(services=("billing", "api")) as stack:
        latencies = sorted(asyncio.run(_measure(stack)))
        resident = stack.service("billing").resident_bytes() / MIB
    yield from [
        Figure("facts: told", len(latencies), "", target=EVENTS_PER_SECOND * SECONDS),
        Figure("facts: accepted → fact p50", latencies[len(latencies) // 2], "s"),
        Figure(
            "facts: accepted → fact p99",
            latencies[int(len(latencies) * 0.99)],
            "s",
            target=2.0,
            at_most=True,
        ),
        Figure("facts: billing resident", resident, "MiB", target=256, at_most=True),
    ]


async def _measure(stack: Stack) -> list[float]:
    total = EVENTS_PER_SECOND * SECONDS
    accepted: dict[str, float] = {}
    told: dict[str, float] = {}
    is_done = asyncio.Event()

    async def heard(message: Msg) -> None:
        told[msgspec.json.decode(message.data)["data"]["subscription"]] = time.perf_counter()
        if len(told) == total:
            is_done.set()

    client = await nats.connect(stack.nats.url)
    await client.subscribe("events.billing.>", cb=heard)

    async def send(line: Line, _: int) -> None:
        name = f"sub_{uuid.uuid4().hex}"
        thing = _subscription(name)
        body, signature = webhook(
            stack.webhook_secret,
            f"evt_{name}",
            thing,
            kind="customer.subscription.created",
            second=thing["created"],
        )
        status, answer = await line.ask(
            post(WEBHOOKS, body, stripe_signature=signature, content_type="application/json")
        )
        if status != 200:
            raise RuntimeError(f"{status}: {answer.decode(errors='replace')}")
        accepted[name] = time.perf_counter()

    await at_rate(
        stack.service("api").port,
        per_second=EVENTS_PER_SECOND,
        seconds=SECONDS,
        connections=CONNECTIONS,
        send=send,
    )
    async with asyncio.timeout(60):
        await is_done.wait()
    await client.close()
    return [max(0.0, told[name] - accepted[name]) for name in accepted]


def _subscription(name: str) -> dict[str, Any]:
    return {**objects.subscription(name, payer="cus_bench", at=int(time.time())), "status": "active"}
