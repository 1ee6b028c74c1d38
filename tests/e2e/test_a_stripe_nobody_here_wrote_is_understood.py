"""localstripe, driven by Stripe's own library, tells the real door of old shapes: they become facts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import stripe

from .conftest import System, wait_for
from .localstripe import KEY, LocalStripe
from .stripe_door import SECRET, emptied, owed, told, waiting

CARD = {
    "type": "card",
    "card": {"number": "4242424242424242", "exp_month": 12, "exp_year": 2040, "cvc": "123"},
}
FAILING_DEBIT = {
    "type": "sepa_debit",
    "sepa_debit": {"iban": "DE62370400440532013001"},
    "billing_details": {"name": "Jo", "email": "jo@example.org"},
}


@pytest.fixture
def localstripe(tmp_path: Path) -> Iterator[LocalStripe]:
    """The server."""
    with LocalStripe(tmp_path) as server:
        yield server


@pytest.fixture
def client(localstripe: LocalStripe) -> stripe.StripeClient:
    """Stripe's own client of it."""
    return stripe.StripeClient(
        KEY,
        base_addresses={"api": localstripe.url},
        http_client=stripe.HTTPXClient(allow_sync_methods=True),
        max_network_retries=0,
    )


def subscribed(client: stripe.StripeClient, means: dict[str, Any], *, quantity: int = 2) -> Any:
    """A customer who pays by these means subscribes."""
    customer = client.v1.customers.create({"email": "jo@example.org"})
    method = client.v1.payment_methods.create(means)  # type: ignore[arg-type]
    client.v1.payment_methods.attach(method.id, {"customer": customer.id})
    client.v1.customers.update(customer.id, {"invoice_settings": {"default_payment_method": method.id}})
    plan = client.v1.plans.create(
        {
            "id": "plan_team",
            "amount": 1999,
            "currency": "usd",
            "interval": "month",
            "product": {"name": "Agents"},
        }
    )
    return client.v1.subscriptions.create(
        {
            "customer": customer.id,
            "items": [{"plan": plan.id, "quantity": quantity}],
            "metadata": {"tenant_id": "acme"},
        }
    )


def facts(system: System) -> dict[str, dict[str, Any]]:
    """What is on the bus, by type; each fact once."""
    found = [(subject, json.loads(body)) for subject, body in told(system)]
    made = {fact["type"]: fact["data"] for _, fact in found}
    assert len(made) == len(found)
    assert {subject for subject, _ in found} == {f"events.billing.acme.{kind}" for kind in made}
    return made


def until_told(system: System, *kinds: str) -> dict[str, dict[str, Any]]:
    """These facts and no others, once nothing waits and nothing is owed."""
    wait_for(
        lambda: set(kinds) <= set(facts(system)) and waiting(system) == owed(system) == 0,
        state=lambda: (facts(system), waiting(system), owed(system)),
    )
    made = facts(system)
    assert set(made) == set(kinds)
    return made


def row(system: System, name: str) -> tuple[Any, ...] | None:
    """A subscription's status, and whether it waits for a look at Stripe."""
    with psycopg.connect(system.stack.database_url) as connection:
        return connection.execute(
            "select status, needs_refetch from billing.subscription where id = %s", [name]
        ).fetchone()


def counted(system: System, **labels: str) -> float:
    """A counter of the door's: webhooks received by their `outcome`, or refused by their `reason`."""
    kind = "received" if "outcome" in labels else "errors"
    ((name, value),) = labels.items()
    metric = f'kgents_stripe_webhooks_{kind}_total{{{name}="{value}"}}'
    text = httpx.get(f"{system.stack.service('api').operations_url}/metrics", follow_redirects=True).text
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(metric))


def test_its_webhooks_become_facts(
    lasting_billing: System, localstripe: LocalStripe, client: stripe.StripeClient
) -> None:
    """Rule: signed by another's hand, sent twice, in any order: verified, kept once, each fact once."""
    system = emptied(lasting_billing)
    door = f"{system.stack.service('api').url}/webhooks/stripe"
    ways: list[dict[str, str]] = [{"reason": "mismatch"}, {"outcome": "stored"}, {"outcome": "duplicate"}]
    before = [counted(system, **way) for way in ways]
    localstripe.register(door, SECRET, name="one")
    localstripe.register(door, SECRET, name="again")
    localstripe.register(door, "whsec_of_somebody_else", name="forger")

    subscription = subscribed(client, CARD)
    made = until_told(system, "subscription.started", "payment.success")
    assert made["payment.success"] == {
        "invoice": subscription.latest_invoice,
        "customer": subscription.customer,
        "subscription": subscription.id,
        "amount_minor": 3998,
        "currency": "usd",
        "exponent": 2,
        "moves_minor": 3998,
        "livemode": False,
    }
    mine = {"authorization": f"Bearer {system.stack.keys['acme']}"}
    found = httpx.get(f"{system.stack.service('billing').url}/v1/billing/subscription", headers=mine).json()
    assert (found["status"], found["access"]) == ("active", "granted")
    item = subscription["items"]["data"][0]
    assert found["items"] == [{"price": "plan_team", "product": item["plan"]["product"], "quantity": 2}]

    client.v1.subscriptions.cancel(subscription.id)
    made = until_told(system, "subscription.started", "payment.success", "subscription.ended")
    assert made["subscription.ended"]["access"] == "revoked"

    events = len(client.v1.events.list({"limit": 100}).data)
    wait_for(lambda: [counted(system, **way) for way in ways] == [count + events for count in before])


def test_a_debit_that_fails_ends_what_it_began(
    lasting_billing: System, localstripe: LocalStripe, client: stripe.StripeClient
) -> None:
    """Rule: an old invoice that was not paid is a failed payment, and the end is told of what had started."""
    system = emptied(lasting_billing)
    localstripe.register(f"{system.stack.service('api').url}/webhooks/stripe", SECRET)
    subscription = subscribed(client, FAILING_DEBIT)
    made = until_told(system, "subscription.started", "payment.failed", "subscription.ended")
    assert made["payment.failed"]["subscription"] == subscription.id
    assert row(system, subscription.id) == ("canceled", False)


def test_what_it_never_sends_is_asked_for(
    lasting_billing: System, localstripe: LocalStripe, client: stripe.StripeClient
) -> None:
    """Rule: without one webhook the poll finds its events; a change without an event, the survey."""
    asking = {
        "STRIPE_API_KEY": KEY,
        "STRIPE_API_BASE": localstripe.url,
        "KGENTS_STRIPE_POLL_SECONDS": "1",
        "KGENTS_STRIPE_SURVEY_SECONDS": "1",
    }
    system = emptied(lasting_billing, **asking)
    subscription = subscribed(client, CARD)
    until_told(system, "subscription.started", "payment.success")

    item = subscription["items"]["data"][0]
    client.v1.subscriptions.update(subscription.id, {"items": [{"id": item["id"], "quantity": 5}]})
    made = until_told(system, "subscription.started", "payment.success", "subscription.updated")
    (changed,) = made["subscription.updated"]["to"]["items"]
    assert (changed["price"], changed["quantity"]) == ("plan_team", 5)
    assert row(system, subscription.id) == ("active", False)
