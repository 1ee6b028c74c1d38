"""A closed-loop HTTP load on loopback: so many connections, each with one request under way, for so long."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import sys
import time
import uuid
from urllib.parse import urlsplit

import msgspec
import uvloop

from kgents_devstack.bench.offer import Line, post

WEBHOOKS = "/webhooks/stripe"


def webhook(secret: str, event_id: str, thing: object, *, kind: str, second: int) -> tuple[bytes, str]:
    """A signed webhook: its body and its `Stripe-Signature`."""
    body = msgspec.json.encode(
        {
            "id": event_id,
            "object": "event",
            "api_version": "2026-10-28.endive",
            "created": second,
            "type": kind,
            "livemode": False,
            "data": {"object": thing},
        }
    )
    now = str(int(time.time()))
    mac = hmac.new(secret.encode(), now.encode() + b"." + body, hashlib.sha256).hexdigest()
    return body, f"t={now},v1={mac}"


def _webhook_request(path: str, secret: str) -> bytes:
    thing = {"id": "in_bench", "object": "invoice", "description": "x" * 5000}
    name = f"evt_{uuid.uuid4().hex}"
    body, signature = webhook(secret, name, thing, kind="invoice.created", second=int(time.time()))
    return post(path, body, stripe_signature=signature, content_type="application/json")


def _request(path: str, key: str, batch: int) -> bytes:
    if path == WEBHOOKS:
        return _webhook_request(path, key)
    events = [
        {
            "specversion": "1.0",
            "id": uuid.uuid4().hex,
            "source": "agents/a1",
            "type": "llm.tokens",
            "time": "2026-11-23T12:00:00Z",
            "subject": "acme",
            "data": {"tokens": 7, "model": "small-1", "direction": "in"},
        }
        for _ in range(batch)
    ]
    body = msgspec.json.encode(events[0] if batch == 1 else events)
    kind = "application/cloudevents+json" if batch == 1 else "application/cloudevents-batch+json"
    return post(path, body, authorization=f"Bearer {key}", content_type=kind)


async def _connection(port: int, make: tuple[str, str, int], until: float, latencies: list[float]) -> None:
    line = await Line.open(port)
    while time.perf_counter() < until:
        request = _request(*make)
        began = time.perf_counter()
        status, body = await line.ask(request)
        if not 200 <= status < 300:
            raise RuntimeError(f"{status}: {body.decode(errors='replace')}")
        latencies.append(time.perf_counter() - began)
    line.close()


async def _run(url: str, key: str, batch: int, connections: int, seconds: float) -> None:
    parts = urlsplit(url)
    assert parts.hostname == "127.0.0.1", "only loopback is a target"
    make = (parts.path, key, batch)
    warm: list[float] = []
    latencies: list[float] = []
    for found, length in ((warm, 1.0), (latencies, seconds)):
        until = time.perf_counter() + length
        await asyncio.gather(*(_connection(parts.port or 80, make, until, found) for _ in range(connections)))
    latencies.sort()
    print(
        msgspec.json.encode(
            {
                "per_second": len(latencies) / seconds,
                "p50_ms": latencies[len(latencies) // 2] * 1000,
                "p99_ms": latencies[int(len(latencies) * 0.99)] * 1000,
            }
        ).decode()
    )


if __name__ == "__main__":
    arguments = sys.argv[1:]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(
            _run(arguments[0], arguments[1], int(arguments[2]), int(arguments[3]), float(arguments[4]))
        )
