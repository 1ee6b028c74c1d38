"""The demo's third part: a subscription's life at Stripe, told out of order and twice, becomes facts."""

from __future__ import annotations

import copy
import hashlib
import hmac
import json
import random
import time
from typing import Any

import httpx
import psycopg
from rich.console import Console

from kgents_devstack.demo.report import Line, show
from kgents_devstack.stack import Stack

TENANT = "acme"
WAIT_SECONDS = 90.0
_DAY = 86_400
FACTS = (
    "payment.refunded",
    "payment.success",
    "subscription.ended",
    "subscription.started",
    "subscription.updated",
)


def run(console: Console, stack: Stack, roll: random.Random) -> bool:
    """Tell the life through the real door; whether every fact is there once, everywhere."""
    events = _life(int(time.time()) - 40 * _DAY)
    deliveries = events + roll.sample(events, k=2)
    roll.shuffle(deliveries)
    for event in deliveries:
        _deliver(stack, json.dumps(event).encode())
    _wait(stack)
    shown = ", ".join(FACTS)
    entitled = httpx.get(
        f"{stack.service('billing').url}/v1/billing/entitlements",
        headers={"authorization": f"Bearer {stack.keys[TENANT]}"},
    ).json()
    lines = [
        Line("facts billing derived", shown, ", ".join(_column(stack, "select type from billing.fact"))),
        Line("facts metering counted", shown, ", ".join(_counted(stack))),
        Line("what the tenant may use after the end", "revoked", entitled["access"]),
    ]
    show(console, f"a subscription's life: {len(events)} webhooks, shuffled, two of them twice", lines)
    console.print()
    return all(line.agrees for line in lines)


def _wait(stack: Stack) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline and len(_counted(stack)) < len(FACTS):
        time.sleep(0.2)


def _counted(stack: Stack) -> list[str]:
    types = _column(stack, "select type from metering.event where type like 'billing.%'")
    return [name.removeprefix("billing.") for name in types]


def _column(stack: Stack, query: str) -> list[str]:
    with psycopg.connect(stack.database_url) as connection:
        return sorted(row[0] for row in connection.execute(query.encode()).fetchall())


def _deliver(stack: Stack, body: bytes) -> None:
    now = str(int(time.time()))
    secret = stack.webhook_secret.encode()
    mac = hmac.new(secret, now.encode() + b"." + body, hashlib.sha256).hexdigest()
    httpx.post(
        f"{stack.service('api').url}/webhooks/stripe",
        content=body,
        headers={"stripe-signature": f"t={now},v1={mac}", "content-type": "application/json"},
    ).raise_for_status()


def _life(start: int) -> list[dict[str, Any]]:
    """Subscribed, paid, enlarged, refunded, ended: in the shape of Stripe's current API version."""
    period = {"current_period_start": start, "current_period_end": start + 30 * _DAY}
    price = {"id": "price_team", "object": "price", "product": "prod_agents", "currency": "usd"}
    item = {"id": "si_demo", "object": "subscription_item", "price": price, "quantity": 1, **period}
    thing: dict[str, Any] = {
        "id": "sub_demo",
        "object": "subscription",
        "customer": "cus_demo",
        "status": "incomplete",
        "created": start,
        "start_date": start,
        "currency": "usd",
        "cancel_at_period_end": False,
        "cancellation_details": {"reason": None},
        "ended_at": None,
        "latest_invoice": "in_demo",
        "metadata": {"tenant_id": TENANT},
        "items": {"object": "list", "data": [item], "has_more": False},
    }
    events = [_event("customer.subscription.created", thing, start)]
    thing["status"] = "active"
    events.append(_event("customer.subscription.updated", thing, start + 60, {"status": "incomplete"}))
    invoice = {
        "id": "in_demo",
        "object": "invoice",
        "customer": "cus_demo",
        "currency": "usd",
        "amount_paid": 4900,
        "amount_due": 4900,
        "attempt_count": 1,
        "billing_reason": "subscription_create",
        "status": "paid",
        "parent": {
            "type": "subscription_details",
            "subscription_details": {"subscription": "sub_demo", "metadata": {"tenant_id": TENANT}},
        },
        "payments": {"object": "list", "data": [{"payment": {"payment_intent": "pi_demo"}}]},
    }
    events.append(_event("invoice.paid", invoice, start + 61))
    before = {"items": copy.deepcopy(thing["items"])}
    item["quantity"] = 5
    events.append(_event("customer.subscription.updated", thing, start + 9 * _DAY, before))
    refund = {
        "id": "re_demo",
        "object": "refund",
        "amount": 1000,
        "currency": "usd",
        "status": "succeeded",
        "payment_intent": "pi_demo",
        "charge": "ch_demo",
        "reason": "requested_by_customer",
        "metadata": {},
    }
    events.append(_event("refund.created", refund, start + 10 * _DAY))
    thing |= {"status": "canceled", "ended_at": start + 30 * _DAY}
    thing["cancellation_details"] = {"reason": "cancellation_requested"}
    events.append(_event("customer.subscription.deleted", thing, start + 30 * _DAY))
    return events


def _event(
    kind: str, thing: dict[str, Any], second: int, previous: dict[str, Any] | None = None
) -> dict[str, Any]:
    data: dict[str, Any] = {"object": copy.deepcopy(thing)}
    if previous is not None:
        data["previous_attributes"] = previous
    return {
        "id": f"evt_demo_{second}_{kind.rpartition('.')[2]}",
        "object": "event",
        "api_version": "2026-10-28.endive",
        "created": second,
        "type": kind,
        "livemode": False,
        "pending_webhooks": 1,
        "data": data,
    }
