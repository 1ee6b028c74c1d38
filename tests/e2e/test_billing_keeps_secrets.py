"""Nothing personal and no secret in a log line, a metric, a span or a fact; and Postgres being away."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from tests.billing.lives import START, Life, snapshot

from kgents_devstack.servers import PostgresServer

from .conftest import System, wait_for
from .stripe_door import ENVIRONMENT, SECRET, SERVICES, check_exact, deliver, settle, told

PLANTED = (
    "jo.planted@example.org",
    "Planted Person",
    "planted-street",
    "pi_planted_secret",
    "planted.example/invoice",
)


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """Everything that was exported as spans, as raw OTLP bodies."""
    bodies: list[bytes] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield bodies
    server.shutdown()
    thread.join()


def planted(body: bytes) -> bytes:
    """The same event with personal data where Stripe puts it."""
    event = json.loads(body)
    event["data"]["object"] |= {
        "customer_email": PLANTED[0],
        "customer_name": PLANTED[1],
        "customer_address": {"line1": PLANTED[2]},
        "client_secret": PLANTED[3],
        "hosted_invoice_url": f"https://{PLANTED[4]}",
        "description": " ".join(PLANTED),
    }
    return json.dumps(event).encode()


def test_planted_values_appear_nowhere(exported: list[bytes], make_system: Callable[..., System]) -> None:
    """Rule: bodies, signatures, keys and what people wrote stay in the raw events; also where things fail."""
    system = make_system(services=SERVICES, environment=ENVIRONMENT)
    life = Life().wait(5).become("active").wait(5).end()
    bodies = [planted(one.body) for one in life.told]
    bodies.append(
        planted(
            snapshot(
                "customer.subscription.updated",
                {"id": "sub_bad", "metadata": {"tenant_id": "acme"}},
                second=START,
            )
        )
    )
    bodies.append(planted(snapshot("invoice.paid", {"id": "in_lost", "object": "invoice"}, second=START)))
    deliver(system, bodies)
    url = system.stack.service("api").url
    httpx.post(f"{url}/webhooks/stripe", content=bodies[0], headers={"stripe-signature": f"t=1,v1={SECRET}"})
    settle(system, len(life.told) + 1)
    wait_for(lambda: bool(exported), 30)
    time.sleep(1)

    found = {f"fact {subject}": body for subject, body in told(system)}
    assert len(found) == 2
    for name in SERVICES:
        service = system.stack.service(name)
        found[f"{name} log"] = service.log_path.read_bytes()
        found[f"{name} metrics"] = httpx.get(f"{service.url}/metrics", follow_redirects=True).content
    found["spans"] = b"".join(exported)
    assert b"billing.set_aside" in found["billing log"]
    for where, content in found.items():
        for value in (*PLANTED, SECRET):
            assert value.encode() not in content, f"{value} in {where}"


def test_postgres_away(make_system: Callable[..., System], own_postgres: PostgresServer) -> None:
    """Rule: Postgres down: nothing is acknowledged, the stream holds; back, every fact is told, once (P4)."""
    system = make_system(services=("api",), environment=ENVIRONMENT)
    system.stack.database_url = own_postgres.create_database("kgents")
    billing = system.stack.make_service("billing").start()
    try:
        lives = [Life().wait(5).become("active").wait(5).end() for _ in range(6)]
        deliver(system, [one.body for life in lives[:3] for one in life.told])
        settle(system, 9)
        own_postgres.kill()
        deliver(system, [one.body for life in lives[3:] for one in life.told])
        time.sleep(3)
        own_postgres.start()
        settle(system, 18, 120)
        check_exact(system, *(life.told for life in lives))
    finally:
        billing.stop()
