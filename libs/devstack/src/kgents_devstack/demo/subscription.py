"""The demo's third part: a subscription's life at Stripe, told out of order and twice, becomes facts."""

from __future__ import annotations

import random
import time

import httpx
import psycopg
from rich.console import Console

from kgents_devstack.demo.report import Line, show
from kgents_devstack.stack import Stack
from kgents_devstack.stripe import Life, Sender, objects

TENANT = "acme"
WAIT_SECONDS = 90.0
_DAY = 86_400
FACTS = (
    "invoice.payment_applied",
    "payment.refunded",
    "payment.success",
    "subscription.ended",
    "subscription.started",
    "subscription.updated",
)


def run(console: Console, stack: Stack, roll: random.Random) -> bool:
    """Tell the life through the real door; whether every fact is there once, everywhere."""
    told = [one.body for one in _life(int(time.time()) - 40 * _DAY).told]
    deliveries = told + roll.sample(told, k=2)
    roll.shuffle(deliveries)
    Sender(f"{stack.service('api').url}/webhooks/stripe", stack.webhook_secret).deliver(deliveries)
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
    show(console, f"a subscription's life: {len(told)} webhooks, shuffled, two of them twice", lines)
    console.print()
    return all(line.agrees for line in lines)


def _wait(stack: Stack) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline and len(_counted(stack)) < len(FACTS):
        time.sleep(0.2)


def _counted(stack: Stack) -> list[str]:
    types = _column(stack, "select type from metering.event where type like 'billing.%'")
    return [name.removeprefix("billing.test.") for name in types]


def _column(stack: Stack, query: str) -> list[str]:
    with psycopg.connect(stack.database_url) as connection:
        return sorted(row[0] for row in connection.execute(query.encode()).fetchall())


def _life(start: int) -> Life:
    """Subscribed, paid, enlarged, refunded, ended."""
    life = Life(
        at=start, tenant=TENANT, priced=objects.price("price_team", product="prod_agents", amount=4900)
    )
    life.wait(60).pay().wait(9 * _DAY).change_item(quantity=5)
    return life.wait(_DAY).refund(1000).wait(20 * _DAY).end()
