"""Stripe asked back: undelivered events, ambiguous ones, states no event ever told; and Stripe being away."""

from __future__ import annotations

import copy
import functools
import random
from collections.abc import Callable, Iterator

import psycopg
import pytest
from tests.billing.lives import START, Life, Told, random_life

from kgents_devstack.stripe import Chaos, StripeStandIn

from .conftest import System, restarted, wait_for
from .stripe_door import check_exact, deliver, emptied, listed_since, settle, told


@pytest.fixture
def stripe() -> Iterator[StripeStandIn]:
    """Stripe's API."""
    with StripeStandIn() as stand_in:
        yield stand_in


@pytest.fixture
def begin(lasting_billing: System, stripe: StripeStandIn) -> Callable[..., System]:
    """Begins with the door and billing, which may ask Stripe, and polls every second."""
    asking = {
        "STRIPE_API_KEY": stripe.key,
        "STRIPE_API_BASE": stripe.url,
        "KGENTS_STRIPE_POLL_SECONDS": "1",
        "KGENTS_STRIPE_POLL_FIRST_DAYS": "30",
        "KGENTS_STRIPE_SURVEY_SECONDS": "2",
    }
    return functools.partial(emptied, lasting_billing, **asking)


@pytest.fixture
def billing(begin: Callable[..., System]) -> System:
    """Both of them, at work."""
    return begin()


def back(system: System, *, polled_last_at: int) -> None:
    """Billing comes back, which was away since then."""
    listed_since(system, polled_last_at)
    restarted(system, "billing")


def tell(stripe: StripeStandIn, events: list[Told]) -> list[bytes]:
    """These events happened."""
    for one in events:
        stripe.tell(one.body)
    return [one.body for one in events]


def test_undelivered_webhooks_are_recovered_whole(
    begin: Callable[..., System], stripe: StripeStandIn
) -> None:
    """Rule: an hour without webhooks is made up by the poll: every fact, once, also those that come late."""
    billing = begin(is_away=True)
    roll = random.Random(1)
    lives = [random_life(roll, same_second=0.0, longest=6) for _ in range(15)]
    bodies = [body for life in lives for body in tell(stripe, life.told)]
    back(billing, polled_last_at=START)
    settle(billing, len(bodies))
    check_exact(billing, *(life.told for life in lives))
    deliver(billing, bodies, Chaos(duplicate=0.3, shuffle=True))
    settle(billing, len(bodies))
    check_exact(billing, *(life.told for life in lives))


def test_what_chaos_drops_comes_by_the_poll(begin: Callable[..., System], stripe: StripeStandIn) -> None:
    """Rule: duplicates, any order and a third never delivered: the same facts."""
    billing = begin(is_away=True)
    roll = random.Random(2)
    lives = [random_life(roll, same_second=0.0, longest=6) for _ in range(15)]
    bodies = [body for life in lives for body in tell(stripe, life.told)]
    deliver(billing, bodies, Chaos(duplicate=0.2, drop=0.34, shuffle=True))
    back(billing, polled_last_at=START)
    settle(billing, len(bodies))
    check_exact(billing, *(life.told for life in lives))


def status(system: System, name: str) -> tuple[str, bool] | None:
    """A subscription's status and whether it waits for a look at Stripe."""
    with psycopg.connect(system.stack.database_url) as connection:
        return connection.execute(
            "select status, needs_refetch from billing.subscription where id = %s", [name]
        ).fetchone()


def test_a_change_no_event_ever_told_is_found_by_the_survey(billing: System, stripe: StripeStandIn) -> None:
    """Rule: where Stripe failed to make an event, the object itself heals the row and tells the change."""
    life = Life().wait(5).become("active")
    deliver(billing, tell(stripe, life.told))
    settle(billing, 2)
    thing = copy.deepcopy(life.now)
    thing["status"] = "past_due"
    stripe.put(thing)
    wait_for(
        lambda: status(billing, life.name) == ("past_due", False), state=lambda: status(billing, life.name)
    )
    settle(billing, 2)
    subjects = sorted(subject for subject, _ in told(billing))
    assert subjects == [
        "events.billing.acme.subscription.started",
        "events.billing.acme.subscription.updated",
    ]


def test_what_events_do_not_tell_is_asked_for(billing: System, stripe: StripeStandIn) -> None:
    """Rule: two changes of one second that undo each other do not tell the last state; the object does."""
    life = Life(at=START).wait(30).become("active").wait(30)
    life.change(cancel_at_period_end=True).wait(0.1).change(cancel_at_period_end=False)
    deliver(billing, tell(stripe, life.told))
    settle(billing, len(life.told))
    wait_for(lambda: status(billing, life.name) == ("active", False))
    assert f"/v1/subscriptions/{life.name}" in stripe.requests
    check_exact(billing, life.told)


def test_stripe_away_loses_nothing(billing: System, stripe: StripeStandIn) -> None:
    """Rule: events are handled as they tell; what only Stripe can tell waits for it (P4)."""
    stripe.is_down = True
    life = Life(at=START).wait(30).become("active").wait(30)
    life.change(cancel_at_period_end=True).wait(0.1).change(cancel_at_period_end=False)
    deliver(billing, tell(stripe, life.told))
    settle(billing, len(life.told))
    assert status(billing, life.name) == ("active", True)
    stripe.is_down = False
    wait_for(lambda: status(billing, life.name) == ("active", False))
    check_exact(billing, life.told)
