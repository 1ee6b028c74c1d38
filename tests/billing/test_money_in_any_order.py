"""Payments, refunds and disputes may come before what tells whose they are: the same facts in any order."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest

from kgents_billing.handlers.rounds import Quarantine
from kgents_billing.model.decision import Outcome
from kgents_common.clock import SystemClock
from kgents_devstack.stripe import START, objects, snapshot

from .lives import Billing
from .told import KnownStripe, ToldBilling, told_billing

CUSTOMER = "cus_money"


def money_life(*, names_payment: bool = True) -> list[bytes]:
    """Six events of one customer; only the checkout says whose it is, and only the invoice what was paid.

    Args:
        names_payment: The invoice names its payment; in current events it does only where asked to.
    """
    session = {
        "id": "cs_money",
        "object": "checkout.session",
        "mode": "subscription",
        "payment_status": "paid",
        "customer": CUSTOMER,
        "subscription": "sub_money",
        "client_reference_id": "acme",
        "metadata": {},
    }
    subscription = {
        **objects.subscription("sub_money", tenant=None),
        "customer": CUSTOMER,
        "status": "active",
    }
    paid = {"data": [{"payment": {"type": "payment_intent", "payment_intent": "pi_money"}}]}
    invoice = {
        "id": "in_money",
        "object": "invoice",
        "customer": CUSTOMER,
        "currency": "jpy",
        "amount_paid": 1999,
        **({"payments": paid} if names_payment else {}),
    }
    refund = {
        "id": "re_money",
        "object": "refund",
        "amount": 100,
        "currency": "jpy",
        "status": "succeeded",
        "charge": None,
        "payment_intent": "pi_money",
    }
    dispute = {
        "id": "dp_money",
        "object": "dispute",
        "amount": 1999,
        "currency": "jpy",
        "status": "needs_response",
        "payment_intent": {"id": "pi_money", "object": "payment_intent", "client_secret": "secret"},
    }
    customer = {"id": CUSTOMER, "object": "customer", "metadata": {}}
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("checkout.session.completed", session),
        ("customer.subscription.created", subscription),
        ("invoice.paid", invoice),
        ("refund.created", refund),
        ("charge.dispute.created", dispute),
        ("customer.deleted", customer),
    ]
    return [
        snapshot(kind, thing, second=START + n, name=f"evt_m{n}") for n, (kind, thing) in enumerate(kinds)
    ]


KEYS = {
    "sub.started:sub_money:acme",
    "pay.ok:in_money",
    "refund:re_money:succeeded",
    "dispute:dp_money:created:needs_response",
    f"cus.deleted:{CUSTOMER}",
}


def taken(bodies: Sequence[bytes]) -> Billing:
    """Told in this order; what waits is tried again as long as that helps."""
    billing, left = Billing(), list(bodies)
    for _ in bodies:
        left = [body for body in left if billing.take(body).outcome is Outcome.QUARANTINED]
    assert left == []
    assert billing.told_twice == 0
    return billing


def test_every_permutation_of_a_paid_life_tells_the_same() -> None:
    """Rule: order is not assumed (P6), also not where one event tells whose another is."""
    wanted = taken(money_life()).facts
    assert set(wanted) == KEYS
    for order in itertools.permutations(money_life()):
        assert taken(order).facts == wanted


async def free_all(billing: ToldBilling) -> None:
    """Rounds of the quarantine, bounded."""
    for _ in range(6):
        async with billing.pool.connection() as connection:
            await connection.execute("update billing.quarantine set next_at = now()")
        await Quarantine(billing.letters, billing.processor, SystemClock()).run()


@pytest.mark.parametrize("seed", range(6))
async def test_the_same_on_postgres(database_url: str, seed: int) -> None:
    """Rule: the quarantine frees what it kept, whatever came first."""
    bodies = money_life() * 2
    random.Random(seed).shuffle(bodies)
    async with told_billing(database_url) as billing:
        for body in bodies:
            await billing.take(body)
        await free_all(billing)
        assert await billing.letters.counts() == (0, 0)
        assert await billing.facts() == taken(money_life()).facts


async def test_whose_a_refund_is_stripe_tells_by_its_payment(database_url: str) -> None:
    """Rule: refunds and disputes name no customer, current invoices no payment: the payment is asked for."""
    bodies = money_life(names_payment=False)
    stripe = KnownStripe()
    stripe.objects["/v1/invoice_payments"] = ({"data": [{"id": "inpay_1", "invoice": "in_money"}]}, START + 9)
    async with told_billing(database_url, stripe) as billing:
        for body in bodies:
            assert (await billing.take(body)).outcome is Outcome.APPLIED
        assert set(await billing.facts()) == KEYS
        assert stripe.asked.count("/v1/invoice_payments") == 2


async def test_a_customer_nobody_knew_is_deleted_in_silence(database_url: str) -> None:
    """Rule: with nobody to tell, its end is no operator's matter either."""

    class Later(SystemClock):
        def now(self) -> datetime:
            return super().now() + timedelta(hours=25)

    async with told_billing(database_url) as billing:
        await billing.take(money_life()[-1])
        assert await billing.letters.counts() == (1, 0)
        async with billing.pool.connection() as connection:
            await connection.execute("update billing.quarantine set next_at = now()")
        await Quarantine(billing.letters, billing.processor, Later()).run()
        assert await billing.letters.counts() == (0, 0)
        assert await billing.facts() == {}
