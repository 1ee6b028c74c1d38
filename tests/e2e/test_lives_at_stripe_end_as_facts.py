"""Lives that the stand-in lives itself, told by webhooks as badly as Stripe may: the facts, and the state."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import psycopg
import pytest

from kgents_devstack.stripe import Chaos, Sender, StripeStandIn, objects

from .conftest import System, restarted, wait_for
from .stripe_door import SECRET, check_exact, emptied, listed_since, settle, waiting

CHAOS = Chaos(
    duplicate=0.2,
    drop=0.2,
    shuffle=True,
    delay=(0.3, timedelta(seconds=3)),
    same_second=0.4,
    seed=3,
)


@pytest.fixture
def stripe() -> Iterator[StripeStandIn]:
    """Stripe, delivering badly."""
    with StripeStandIn(chaos=CHAOS) as stand_in:
        yield stand_in


@pytest.fixture
def billing(lasting_billing: System, stripe: StripeStandIn) -> System:
    """The door and billing, which may ask Stripe, and polls every second."""
    asking = {
        "STRIPE_API_KEY": stripe.key,
        "STRIPE_API_BASE": stripe.url,
        "KGENTS_STRIPE_PER_SECOND": "100",
        "KGENTS_STRIPE_POLL_SECONDS": "1",
        "KGENTS_STRIPE_POLL_FIRST_DAYS": "30",
    }
    return emptied(lasting_billing, **asking)


def sender(system: System) -> Sender:
    """Stripe's way to the door."""
    return Sender(f"{system.stack.service('api').url}/webhooks/stripe", SECRET)


def statuses(system: System) -> dict[str, tuple[str, bool]]:
    """Each subscription's status, and whether it waits for a look at Stripe."""
    with psycopg.connect(system.stack.database_url) as connection:
        rows = connection.execute("select id, status, needs_refetch from billing.subscription").fetchall()
    return {name: (status, needs) for name, status, needs in rows}


def test_random_lives_with_money_badly_delivered(billing: System, stripe: StripeStandIn) -> None:
    """Rule: paid, failed, refunded, disputed, renewed, ended, in any order: each fact once."""
    lives = stripe.live(25)
    distinct = sum(len(life.told) for life in lives)
    door = sender(billing)
    sent = stripe.deliver(door)
    assert len(door.log) == sent != distinct
    billing.stack.service("billing").stop()
    listed_since(billing, objects.START)
    restarted(billing, "billing")
    settle(billing, distinct)
    wait_for(lambda: waiting(billing) == 0, state=lambda: f"{waiting(billing)} without a tenant")
    settle(billing, distinct)
    wanted = {life.name: (life.now["status"], False) for life in lives}
    wait_for(lambda: statuses(billing) == wanted, state=lambda: statuses(billing))
    check_exact(billing, *(life.told for life in lives), looked_up="acme")


def test_each_change_is_told_as_it_comes(billing: System, stripe: StripeStandIn) -> None:
    """Rule: what happens at Stripe between two deliveries is told by the second; the object follows."""
    stripe.chaos = Chaos()
    life = stripe.subscribe(tenant="globex", trial_days=14)
    assert stripe.deliver(sender(billing)) == 2
    life.wait(5).change_price(objects.price("price_b", product="prod_b", amount=4900)).wait(
        5
    ).cancel_at_period_end()
    life.wait(5).keep().wait(5).renew().wait(5).fail().wait(5).pay().wait(5).refund(100).wait(5).dispute()
    life.wait(5).end()
    assert stripe.deliver(sender(billing)) == len(life.told) - 2
    assert stripe.deliver(sender(billing)) == 0
    settle(billing, len(life.told))
    check_exact(billing, life.told, looked_up="globex")
    assert statuses(billing) == {life.name: ("canceled", False)}
    assert stripe.books.object("subscription", life.name) == life.now
