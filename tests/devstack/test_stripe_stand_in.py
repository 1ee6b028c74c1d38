"""The stand-in for Stripe: its lives make events and objects that agree; its chaos is the one asked for."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
import stripe

from kgents_devstack.stripe import Chaos, Life, Sender, StripeStandIn, objects

SECRET = "whsec_for_loopback_only"


@pytest.fixture
def stand_in() -> Iterator[StripeStandIn]:
    """Stripe on loopback."""
    with StripeStandIn() as server:
        yield server


class Endpoint:
    """A webhook endpoint that verifies with Stripe's own library, and refuses each event's first attempts."""

    def __init__(self, refusals: int = 0) -> None:
        self.attempts: Counter[str] = Counter()
        self.taken: list[str] = []
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                stripe.WebhookSignature.verify_header(body.decode(), self.headers["stripe-signature"], SECRET)
                name = json.loads(body)["id"]
                endpoint.attempts[name] += 1
                is_taken = endpoint.attempts[name] > refusals
                if is_taken:
                    endpoint.taken.append(name)
                self.send_response(200 if is_taken else 503)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def sender(self, at_once: int = 1) -> Sender:
        """Stripe's way here."""
        return Sender(f"http://127.0.0.1:{self.server.server_port}", SECRET, at_once=at_once)

    def close(self) -> None:
        """Listen no more."""
        self.server.shutdown()
        self.thread.join(10)
        self.server.server_close()


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    """Takes every event at its second attempt."""
    made = Endpoint(refusals=1)
    yield made
    made.close()


def asked(stand_in: StripeStandIn, path: str, **params: Any) -> dict[str, Any]:
    """What its API answers."""
    headers = {"authorization": f"Bearer {stand_in.key}"}
    answer = httpx.get(f"{stand_in.url}{path}", params=params, headers=headers)
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    return found


def a_whole_life(stand_in: StripeStandIn) -> Life:
    """Everything that can happen to one subscription."""
    life = stand_in.subscribe(tenant="acme").wait(1).pay().wait(1).refund(500).wait(1).dispute()
    life.wait(1).change_item(quantity=4).wait(1).cancel_at_period_end().wait(1).keep()
    return life.wait(1).renew().wait(1).fail().wait(1).pay().wait(1).end()


def test_a_life_makes_the_events_stripe_makes(stand_in: StripeStandIn) -> None:
    """Rule: each change tells what happened and what was before, and nothing else."""
    told = [
        (event["type"].removeprefix("customer."), sorted(event["data"].get("previous_attributes", {})))
        for event in (json.loads(one.body) for one in a_whole_life(stand_in).told)
    ]
    cancellation = ["cancel_at", "cancel_at_period_end", "canceled_at", "cancellation_details"]
    assert told == [
        ("created", []),
        ("subscription.created", []),
        ("invoice_payment.paid", []),
        ("invoice.paid", []),
        ("subscription.updated", ["status"]),
        ("charge.refunded", ["amount_refunded"]),
        ("refund.created", []),
        ("charge.dispute.created", []),
        ("charge.dispute.funds_withdrawn", []),
        ("subscription.updated", ["items"]),
        ("subscription.updated", cancellation),
        ("subscription.updated", cancellation),
        ("subscription.updated", ["items", "latest_invoice"]),
        ("invoice.payment_failed", []),
        ("subscription.updated", ["status"]),
        ("invoice_payment.paid", []),
        ("invoice.paid", []),
        ("subscription.updated", ["status"]),
        ("subscription.deleted", []),
    ]


def test_what_was_before_is_what_the_event_before_said(stand_in: StripeStandIn) -> None:
    """Rule: an event's old values, laid over its object, are the object of the event before it."""
    life = a_whole_life(stand_in)
    before: dict[str, Any] | None = None
    for one in life.told:
        data = json.loads(one.body)["data"]
        if data["object"]["object"] == "subscription":
            for name, old in data.get("previous_attributes", {}).items():
                assert before is not None
                whole = {**data["object"][name], **old} if isinstance(old, dict) and name != "items" else old
                assert whole == before[name]
            before = data["object"]
    assert before == life.now


def test_stripes_own_library_reads_what_happened(stand_in: StripeStandIn) -> None:
    """Rule: lists and objects are those of the last change, to a client nobody here wrote."""
    life = a_whole_life(stand_in)
    client = stripe.StripeClient(
        stand_in.key,
        base_addresses={"api": stand_in.url},
        http_client=stripe.HTTPXClient(allow_sync_methods=True),
    )
    listed = [event.id for event in client.v1.events.list({"limit": 5}).auto_paging_iter()]
    assert listed == [one.id for one in reversed(life.told)]
    assert client.v1.subscriptions.retrieve(life.name).status == "canceled"
    assert client.v1.customers.retrieve(life.customer["id"]).metadata["tenant_id"] == "acme"
    assert client.v1.invoices.retrieve(life.invoice["id"]).status == "paid"
    assert life.charge is not None
    assert client.v1.charges.retrieve(life.charge["id"]).customer == life.customer["id"]
    assert client.v1.subscriptions.list().data == []
    assert [found.id for found in client.v1.subscriptions.list({"status": "all"}).data] == [life.name]


def test_deliveries_are_signed_retried_and_made_once(stand_in: StripeStandIn, endpoint: Endpoint) -> None:
    """Rule: every event until it is taken, and the next time only what happened since."""
    life = stand_in.subscribe().wait(1).pay()
    sender = endpoint.sender()
    assert stand_in.deliver(sender) == len(life.told)
    assert sender.log == [[503, 200]] * len(life.told)
    assert endpoint.taken == [one.id for one in life.told]
    life.wait(1).end()
    assert stand_in.deliver(sender) == 1
    assert endpoint.taken[-1] == life.told[-1].id


def test_chaos_duplicates_drops_shuffles_and_delays() -> None:
    """Rule: each switch does its own, the same seed the same."""
    bodies = [b"%d" % number for number in range(1000)]
    assert Chaos().plan(bodies) == [(0.0, body) for body in bodies]
    twice = Counter(Chaos(duplicate=0.2).order(bodies))
    assert set(twice) == set(bodies)
    assert 100 < sum(count == 2 for count in twice.values()) < 300
    assert 100 < len(bodies) - len(Chaos(drop=0.2).order(bodies)) < 300
    shuffled = Chaos(shuffle=True).order(bodies)
    assert (sorted(shuffled), shuffled == bodies) == (sorted(bodies), False)
    late = Chaos(delay=(0.2, timedelta(seconds=9))).plan(bodies)
    assert 100 < sum(seconds > 0 for seconds, _ in late) < 300
    assert late == sorted(late, key=lambda pair: pair[0])
    assert late[-1][0] <= 9
    assert late == Chaos(delay=(0.2, timedelta(seconds=9))).plan(bodies)


@pytest.mark.parametrize(("same_second", "low", "high"), [(0.0, 0.0, 0.0), (0.9, 0.6, 1.0)])
def test_changes_come_in_bursts(stand_in: StripeStandIn, same_second: float, low: float, high: float) -> None:
    """Rule: `same_second` is how often a change comes within the second of the one before."""
    stand_in.chaos = Chaos(same_second=same_second)
    lives = stand_in.live(60)
    changes = [
        (earlier["created"], later["created"])
        for life in lives
        for earlier, later in zip(_changes(life), _changes(life)[1:], strict=False)
    ]
    shared = sum(later == earlier for earlier, later in changes) / len(changes)
    assert low <= shared <= high


def _changes(life: Life) -> list[dict[str, Any]]:
    """A life's events, one for each moment and subscription state."""
    events = [json.loads(one.body) for one in life.told]
    return [event for event in events if event["data"]["object"]["object"] == "subscription"]


def test_what_is_not_there_cannot_go_back() -> None:
    """Rule: nothing is refunded or disputed before it was paid."""
    with pytest.raises(ValueError, match="nothing was paid"):
        Life().refund(100)
    assert objects.subscription("sub_1")["latest_invoice"] is None
