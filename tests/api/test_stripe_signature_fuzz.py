"""Twenty thousand forged webhooks through the whole door, in this process: 400 each, and nothing stored."""

from __future__ import annotations

import random
import time
from collections import Counter
from typing import Any

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.applications import Starlette
from starlette.types import Message

from kgents_api.handlers import stripe_webhooks
from kgents_api.handlers.instrument import Instrument
from kgents_api.handlers.stripe_webhooks import PATH, StripeWebhooks, WebhookMetrics
from kgents_api.metrics import Metrics
from kgents_api.model.tenant_limits import FairShare
from kgents_api.sinks.stripe_secrets import WebhookSecrets
from kgents_common.clock import SystemClock
from kgents_common.publisher import Ack
from kgents_common.telemetry import new_registry
from kgents_devstack.stripe import signed

SECRET, OTHER = "whsec_0123456789abcdef", "whsec_fedcba9876543210"
PLANTED = "planted@example.org"
BODY = (
    b'{"id":"evt_1","object":"event","type":"invoice.paid","created":1,"data":{"object":{"email":"%s"}}}'
    % (PLANTED.encode())
)
COUNT = 20_000


class Stream:
    """Stands for the publisher; remembers what reached it."""

    def __init__(self) -> None:
        self.stored: list[str] = []

    async def publish(self, subject: str, payload: bytes, **_: Any) -> Ack:
        del payload
        self.stored.append(subject)
        return Ack("EVENTS", len(self.stored), False)


class Door:
    """The api's own parts around the webhook door, as `app` puts them together, without a socket."""

    def __init__(self) -> None:
        self.stream = Stream()
        self.spans = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.spans))
        registry, clock = new_registry(), SystemClock()
        stream: Any = self.stream
        webhooks = StripeWebhooks(
            WebhookSecrets(f"main:{SECRET},old:{OTHER}", None, clock),
            stream,
            share=FairShare(2**26),
            metrics=WebhookMetrics(registry),
            clock=clock,
            mode=None,
        )
        self.app = Instrument(
            Starlette(routes=stripe_webhooks.routes(webhooks)),
            direct={("POST", PATH): webhooks},
            routes={PATH: PATH},
            metrics=Metrics(registry),
            tracer=provider.get_tracer("test"),
            max_concurrency=512,
        )

    async def post(self, body: bytes, headers: list[tuple[bytes, bytes]], address: str) -> int:
        scope = {
            "type": "http",
            "method": "POST",
            "path": PATH,
            "headers": headers,
            "client": (address, 1),
            "query_string": b"",
        }
        statuses: list[int] = []

        async def receive() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        await self.app(scope, receive, send)
        (status,) = statuses
        return status


def forged(roll: random.Random) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """A body with a header that cannot be good for it, whatever becomes of the header."""
    body = BODY if roll.random() < 0.7 else roll.randbytes(roll.randrange(200))
    at = int(time.time()) + roll.choice((0, 0, -301, 301, -1, 1 << 40))
    signature = {
        0: lambda: signed(body, "whsec_nobody_knows_this", at=at),
        1: lambda: signed(body + b" ", SECRET, at=at),
        2: lambda: signed(body, SECRET, at=int(time.time()) - roll.randrange(3_600, 10**8)),
        3: lambda: signed(body, SECRET, at=int(time.time()) + roll.randrange(3_600, 10**8)),
    }[roll.randrange(4)]()["stripe-signature"]
    text = bytearray(signature.encode())
    for _ in range(roll.randrange(6)):
        place = roll.randrange(len(text) + 1)
        edit = roll.choice(("drop", "insert", "swap", "repeat", "cut"))
        if edit == "drop" and text:
            # A signed time that loses digits is another time, so the signature over it is no longer one.
            del text[min(place, len(text) - 1)]
        elif edit == "insert":
            text[place:place] = roll.choice(
                (b",", b"=", b"v1=", b"t=0", b"\xe9", b"\xff\xfe", b"\x00", b"-", b" ", "\u0660".encode())
            )
        elif edit == "swap" and text:
            text[min(place, len(text) - 1)] = roll.randrange(256)
        elif edit == "repeat" and len(text) < 20_000:
            text += b"," + text
        elif edit == "cut":
            del text[place:]
    headers = [(b"stripe-signature", bytes(text))] if roll.random() < 0.98 else []
    if roll.random() < 0.1:
        headers += [(b"x-webhook-secret", SECRET.encode()), (b"x-debug", PLANTED.encode())]
    return body, headers


async def test_twenty_thousand_forged_webhooks_are_400_each(capfd: Any) -> None:
    """Rule: 400 and never 500, whatever the signature is; nothing is stored, nothing of it told anybody."""
    door, roll = Door(), random.Random(20_000)
    statuses: Counter[int] = Counter()
    for number in range(COUNT):
        body, headers = forged(roll)
        statuses[await door.post(body, headers, f"10.0.{number >> 8}.{number & 255}")] += 1
    assert statuses == {400: COUNT}
    assert door.stream.stored == []
    spans = door.spans.get_finished_spans()
    assert len(spans) == COUNT
    told = "".join(span.to_json(indent=None) for span in spans[:: COUNT // 500]) + "".join(capfd.readouterr())
    for secret in (PLANTED, SECRET, OTHER):
        assert secret not in told


async def test_the_same_door_takes_what_either_secret_signed() -> None:
    """Rule: the forgeries are refused for being forged, not because the door takes nothing."""
    door = Door()
    for secret in (SECRET, OTHER):
        headers = [(name.encode(), value.encode()) for name, value in signed(BODY, secret).items()]
        assert await door.post(BODY, headers, "10.0.0.1") == 200
    assert len(door.stream.stored) == 2
