"""A closed-loop HTTP load on loopback: so many connections, each with one request under way, for so long.

Written on asyncio's streams: a client library would cost more than what it measures.
"""

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


def _webhook_request(path: str, host: str, secret: str) -> bytes:
    thing = {"id": "in_bench", "object": "invoice", "description": "x" * 5000}
    name = f"evt_{uuid.uuid4().hex}"
    body, signature = webhook(secret, name, thing, kind="invoice.created", second=int(time.time()))
    head = (
        f"POST {path} HTTP/1.1\r\nhost: {host}\r\nstripe-signature: {signature}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _request(path: str, host: str, key: str, batch: int) -> bytes:
    if path == WEBHOOKS:
        return _webhook_request(path, host, key)
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
    head = (
        f"POST {path} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {key}\r\n"
        f"content-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def _connection(
    address: tuple[str, int], make: tuple[str, str, str, int], until: float, latencies: list[float]
) -> None:
    reader, writer = await asyncio.open_connection(*address)
    while time.perf_counter() < until:
        request = _request(*make)
        began = time.perf_counter()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 20"):
            raise RuntimeError(head.decode(errors="replace"))
        lower = head.lower()
        at = lower.index(b"content-length:") + 15
        length = int(lower[at : lower.index(b"\r", at)])
        if length:
            await reader.readexactly(length)
        latencies.append(time.perf_counter() - began)
    writer.close()


async def _run(url: str, key: str, batch: int, connections: int, seconds: float) -> None:
    parts = urlsplit(url)
    assert parts.hostname == "127.0.0.1", "only loopback is a target"
    address = (parts.hostname, parts.port or 80)
    make = (parts.path, parts.netloc, key, batch)
    warm: list[float] = []
    latencies: list[float] = []
    for found, length in ((warm, 1.0), (latencies, seconds)):
        until = time.perf_counter() + length
        await asyncio.gather(*(_connection(address, make, until, found) for _ in range(connections)))
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
