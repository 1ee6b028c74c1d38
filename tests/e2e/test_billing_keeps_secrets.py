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
from kgents_devstack.stripe import StripeStandIn

from .conftest import System, wait_for
from .stripe_door import ENVIRONMENT, SECRET, SERVICES, check_exact, deliver, settle, told

PLANTED = (
    "jo.planted@example.org",
    "Planted Person",
    "planted-street",
    "pi_planted_secret",
    "planted.example/invoice",
    "planted-note",
)
# Metering too: facts are its events.
WATCHED = ("metering", *SERVICES)
KEY = "rk_test_planted_key"


@pytest.fixture
def stripe() -> Iterator[StripeStandIn]:
    """Stripe's API, which knows one secret key."""
    with StripeStandIn(key=KEY) as stand_in:
        yield stand_in


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
        "customer_details": {"email": PLANTED[0], "name": PLANTED[1], "phone": "+49 planted-street"},
        "shipping": {"name": PLANTED[1], "address": {"line1": PLANTED[2]}},
        "evidence": {"customer_name": PLANTED[1], "uncategorized_text": " ".join(PLANTED)},
        "hosted_invoice_url": f"https://{PLANTED[4]}",
        "receipt_url": f"https://{PLANTED[4]}",
        "description": " ".join(PLANTED),
        "reason": " ".join(PLANTED),
        "billing_reason": PLANTED[0],
        "cancellation_details": {"comment": PLANTED[5], "feedback": "other", "reason": PLANTED[5]},
    }
    event["data"]["object"].setdefault("metadata", {})["note"] = PLANTED[5]
    return json.dumps(event).encode()


def money_bodies() -> list[bytes]:
    """One event of each kind of object that money moves by."""
    five = {"amount": 5, "currency": "usd"}
    things = {
        "checkout.session.completed": {
            "id": "cs_1",
            "mode": "payment",
            "payment_status": "paid",
            "amount_total": 5,
            "currency": "usd",
        },
        "invoice.payment_failed": {"id": "in_1", "amount_due": 5, "currency": "usd"},
        "refund.created": {"id": "re_1", "status": "succeeded", **five},
        "charge.dispute.created": {"id": "dp_1", "status": "needs_response", **five},
        "customer.updated": {"id": "cus_1", "email": PLANTED[0]},
        "customer.deleted": {"id": "cus_1", "email": PLANTED[0]},
    }
    return [
        snapshot(kind, {**thing, "object": "x", "metadata": {"tenant_id": "acme"}}, second=START)
        for kind, thing in things.items()
    ]


def test_planted_values_appear_nowhere(
    exported: list[bytes], make_system: Callable[..., System], stripe: StripeStandIn
) -> None:
    """Rule: bodies, signatures, keys and what people wrote stay in the raw events; also where things fail."""
    asking = {"STRIPE_API_KEY": KEY, "STRIPE_API_BASE": stripe.url, "KGENTS_STRIPE_POLL_SECONDS": "1"}
    system = make_system(services=WATCHED, environment={**ENVIRONMENT, "billing": asking})
    life = Life().wait(5).become("active").wait(5).end()
    good = [one.body for one in life.told] + money_bodies()
    unreadable = {"id": "sub_bad", "metadata": {"tenant_id": "acme"}}
    lost = {"id": "in_lost", "object": "invoice", "customer": "cus_lost"}
    bad = [
        snapshot("customer.subscription.updated", unreadable, second=START),
        snapshot("invoice.paid", lost, second=START),
    ]
    bodies = [planted(body) for body in [*good, *bad]]
    stripe.rate_limited = 3
    deliver(system, bodies)
    url = system.stack.service("api").url
    forged = {"stripe-signature": f"t=1,v1={SECRET},v1={PLANTED[3]}", "x-note": PLANTED[0]}
    assert httpx.post(f"{url}/webhooks/stripe", content=bodies[0], headers=forged).status_code == 400
    settle(system, len(good) + 1)
    stripe.refuses_key = True  # an error of Stripe's library holds the request it made
    wait_for(lambda: b"stripe.refused" in system.stack.service("billing").log_path.read_bytes())
    wait_for(lambda: b"billing process" in b"".join(exported))
    time.sleep(1)

    facts = told(system)
    kinds = {subject.removeprefix("events.billing.acme.") for subject, _ in facts}
    assert kinds == {
        "subscription.started",
        "subscription.ended",
        "payment.success",
        "payment.failed",
        "payment.refunded",
        "payment.disputed",
        "customer.deleted",
    }
    found = {f"fact {subject}": body for subject, body in facts}
    for name in WATCHED:
        service = system.stack.service(name)
        found[f"{name} log"] = service.log_path.read_bytes()
        found[f"{name} metrics"] = httpx.get(
            f"{service.operations_url}/metrics", follow_redirects=True
        ).content
    found["spans"] = b"".join(exported)
    assert b"billing.set_aside" in found["billing log"]
    for where, content in found.items():
        for value in (*PLANTED, SECRET, KEY):
            assert value.encode() not in content, f"{value} in {where}"


@pytest.mark.parametrize(
    "seconds", [1, pytest.param(60, marks=pytest.mark.long)], ids=["for_a_moment", "for_a_minute"]
)
def test_postgres_away(
    make_system: Callable[..., System], own_postgres: PostgresServer, seconds: float
) -> None:
    """Rule: Postgres down: webhooks are taken, the stream holds; back, every fact is told, once (P4)."""
    system = make_system(services=("api",), environment=ENVIRONMENT, needs_openmeter=False)
    system.stack.database_url = own_postgres.create_database("kgents")
    billing = system.stack.make_service("billing").start()
    try:
        lives = [Life().wait(5).become("active").wait(5).end() for _ in range(40)]
        deliver(system, [one.body for life in lives[:20] for one in life.told])
        settle(system, 60)
        own_postgres.kill()
        for life in lives[20:]:
            deliver(system, [one.body for one in life.told])
            time.sleep(seconds / 20)
        assert billing.is_running
        own_postgres.start()
        settle(system, 120)
        check_exact(system, *(life.told for life in lives))
    finally:
        billing.stop()
