"""Steady load on a door while its NATS server goes away and comes back; what was answered is remembered."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from threading import Thread
from typing import Self

import httpx
import nats

from kgents_devstack.services import ServiceProcess

from .conftest import encoded, event

PRODUCERS = 20


@dataclass
class Answers:
    """What the door said of each event, and how often it said what."""

    stored: dict[str, str] = field(default_factory=dict)
    statuses: Counter[int] = field(default_factory=Counter)
    unanswered: int = 0


class Load:
    """Producers that send one request after the other, every tenth with ten events, while its block runs."""

    def __init__(self, url: str, key: str, *, pause_seconds: float = 0.002) -> None:
        self._url = url
        self._key = key
        self._pause = pause_seconds
        self._is_over = False
        self.answers = Answers()
        self._thread = Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> Self:
        # On a thread of its own: a server lives as long as the thread that started it.
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Let the producers finish what is under way."""
        self._is_over = True
        self._thread.join()

    async def _run(self) -> None:
        async with httpx.AsyncClient(
            base_url=self._url, timeout=20, headers={"x-api-key": self._key}
        ) as client:
            await asyncio.gather(*(self._produce(client, f"p{n}") for n in range(PRODUCERS)))

    async def _produce(self, client: httpx.AsyncClient, name: str) -> None:
        number = 0
        while not self._is_over:
            count = 10 if number % 10 == 9 else 1
            ids = [f"{name}-{number:06}-{part}" for part in range(count)]
            number += 1
            kind = "application/cloudevents" + ("-batch+json" if count > 1 else "+json")
            body = json.dumps([event(one) for one in ids]).encode() if count > 1 else encoded(ids[0])
            try:
                answer = await client.post("/v1/events", content=body, headers={"content-type": kind})
            except httpx.TransportError:
                self.answers.unanswered += 1
                await asyncio.sleep(0.1)
                continue
            self.answers.statuses[answer.status_code] += 1
            if answer.status_code == 202:
                receipts = answer.json()["receipts"]
                self.answers.stored |= {one["id"]: one["stored"] for one in receipts}
            await asyncio.sleep(self._pause)


async def held(url: str, stream: str = "AGENTESE") -> Counter[str]:
    """How often the stream holds each event id."""
    client = await nats.connect(url)
    try:
        jetstream = client.jetstream()
        left = (await jetstream.stream_info(stream)).state.messages
        subscription = await jetstream.subscribe("agentese.>", ordered_consumer=True, pending_msgs_limit=-1)
        found: Counter[str] = Counter()
        for _ in range(left):
            message = await subscription.next_msg(timeout=10)
            found[json.loads(message.data)["id"]] += 1
        return found
    finally:
        await client.close()


def metric(text: str, name: str) -> float:
    """A metric without labels, by its name."""
    return float(next(line.split()[1] for line in text.splitlines() if line.startswith(name + " ")))


def check(service: ServiceProcess) -> Mapping[str, str]:
    """Each check of the health document and its status."""
    document = httpx.get(f"{service.operations_url}/health").json()
    return {name: one["status"] for name, one in document["checks"].items()}
