"""The way of one event: published through the door, then looked for in the ledger and among the spans."""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
from typing import Any

import httpx
import psycopg

from kgents_devstack.page.spans import Spans
from kgents_devstack.stack import Stack

SOURCE = "devstack/page"
STRUCTURED = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"


class Ways:
    """Publishes for a tenant of the stack; its keys never leave this process."""

    def __init__(self, stack: Stack, client: httpx.AsyncClient, spans: Spans) -> None:
        self._stack = stack
        self._client = client
        self._spans = spans
        self._run = secrets.token_hex(4)

    async def publish(self, tenant: str, kind: str, data: object, event_id: str) -> dict[str, Any]:
        """Send one event; the answer as the door gave it, and the trace it is part of."""
        trace_id = secrets.token_hex(16)
        event = {"specversion": "1.0", "id": event_id, "source": SOURCE, "type": kind, "data": data}
        answer = await self._client.post(
            f"{self._stack.service('api').url}/v1/events",
            json=event,
            headers={
                "authorization": f"Bearer {self._stack.keys[tenant]}",
                "content-type": STRUCTURED,
                "traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01",
            },
        )
        return {"status": answer.status_code, "answer": answer.json(), "trace": trace_id, "id": event_id}

    async def play(self) -> None:
        """A few events a second of every tenant, for ever; what is not taken is not missed."""
        number = 0
        while True:
            for key in self._stack.keys.values():
                number += 1
                events = [
                    _made_up(f"{self._run}-{number}-{index}") for index in range(random.randrange(1, 6))
                ]
                with contextlib.suppress(httpx.HTTPError):
                    await self._client.post(
                        f"{self._stack.service('api').url}/v1/events",
                        json=events,
                        headers={"authorization": f"Bearer {key}", "content-type": BATCH},
                    )
            await asyncio.sleep(random.uniform(0.2, 1.0))

    async def find(self, tenant: str, event_id: str, trace_id: str) -> dict[str, Any]:
        """How far it has come, how many seconds after it was stored, and its spans."""
        async with await psycopg.AsyncConnection.connect(self._stack.database_url) as connection:
            found = await connection.execute(
                "select e.seq, extract(epoch from e.stored_at)::float8,"
                " extract(epoch from min(d.at))::float8, count(d.n)"
                " from metering.event e left join metering.delivered d on d.n = e.n"
                " where e.tenant = %s and e.source = %s and e.ce_id = %s group by e.seq, e.stored_at",
                [tenant, SOURCE, event_id],
            )
            row = await found.fetchone()
        spans = self._spans.of(trace_id)
        begin = spans[0].started if spans else 0
        return {
            "counted": row is not None,
            "sequence": row[0] if row else None,
            "delivered": bool(row and row[3]),
            "delivered_after": max(0.0, row[2] - row[1]) if row and row[2] else None,
            "spans": [
                {
                    "service": span.service,
                    "name": span.name,
                    "joined": span.is_joined,
                    "from": (span.started - begin) / 1e6,
                    "for": (span.ended - span.started) / 1e6,
                }
                for span in spans
            ],
        }


def _made_up(event_id: str) -> dict[str, Any]:
    kind, data = random.choice(
        (
            ("llm.tokens", {"tokens": random.randrange(1, 2000), "model": "small-1", "direction": "in"}),
            ("llm.tokens", {"tokens": random.randrange(1, 900), "model": "large-3", "direction": "out"}),
            ("agent.tool.ran", {"seconds": round(random.uniform(0.1, 9), 2), "tool": "search"}),
            ("agent.count", {"running": random.randrange(1, 30)}),
        )
    )
    return {"specversion": "1.0", "id": event_id, "source": "agents/made-up", "type": kind, "data": data}
