"""What the stand-in and the fixtures say is what Stripe says, by the OpenAPI that its library is made of."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from kgents_billing.model.event_map import ENDPOINT_TYPES
from kgents_devstack.stripe import Books, objects, random_life

from .lives import START, Life, snapshot
from .shapes import event_faults, faults
from .test_facts_of_every_type import TABLE, old_invoice

KINDS = ("customer", "subscription", "invoice", "charge", "refund", "dispute")


def test_every_event_and_object_of_a_life_is_of_the_current_shape() -> None:
    """Rule: fields, types, what is required and enumerations are those of the API version they name."""
    roll, books = random.Random(7), Books()
    lives = [random_life(roll, longest=20, with_money=True, books=books) for _ in range(200)]
    lives.append(Life(trial_days=14, books=books).wait(5).become("active"))
    told = {one.type for life in lives for one in life.told}
    assert told >= {
        *("customer.created", "customer.subscription.created", "customer.subscription.updated"),
        *("customer.subscription.deleted", "invoice.paid", "invoice.payment_failed"),
        *("charge.refunded", "refund.created", "charge.dispute.created", "charge.dispute.funds_withdrawn"),
    }
    for life in lives:
        for one in life.told:
            assert event_faults(json.loads(one.body)) == []
    for kind in KINDS:
        served = books.objects(kind)
        assert served
        for thing in served:
            assert faults(thing) == []


def test_every_fixture_of_the_table_is_of_the_current_shape() -> None:
    """Rule: what the facts are tested with is what Stripe sends, except where an older shape is meant."""
    checked = set()
    for kind, thing, previous, _ in TABLE:
        if thing != old_invoice():
            event = snapshot(kind, thing, second=START, previous=previous)
            assert event_faults(json.loads(event)) == []
            checked.add(kind)
    assert {kind for kind in ENDPOINT_TYPES if not kind.startswith("customer.subscription.")} <= checked
    assert faults(old_invoice()) == [
        "invoice.subscription: no such field",
        "invoice.subscription_details: no such field",
    ]


def broken(change: Callable[[dict[str, Any]], object]) -> list[str]:
    """The faults of a good subscription after a change."""
    thing = copy.deepcopy(objects.subscription("sub_1"))
    assert faults(thing) == []
    change(thing)
    return faults(thing)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda s: s.update(plan_name="team"), "plan_name: no such field"),
        (lambda s: s.pop("billing_mode"), "billing_mode: missing"),
        (lambda s: s.update(status="dreaming"), "status: 'dreaming' is none of its values"),
        (lambda s: s.update(currency=None), "currency: null"),
        (lambda s: s.update(livemode=0), "livemode: int is not <class 'bool'>"),
        (lambda s: s.update(created=True), "created: bool is not <class 'int'>"),
        (lambda s: s["metadata"].update(seats=3), "metadata.seats: int is not <class 'str'>"),
        (lambda s: s["automatic_tax"].clear(), "automatic_tax.enabled: missing"),
        (lambda s: s["items"]["data"][0].pop("price"), "items.data[0].price: missing"),
        (lambda s: s["items"]["data"][0]["plan"].update(interval="moon"),
         "items.data[0].plan.interval: 'moon' is none of its values"),
        (lambda s: s.update(items=[]), "items: list is not stripe._list_object.ListObject"),
        (lambda s: s.update(current_period_end=START), "current_period_end: no such field"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)  # fmt: skip
def test_a_wrong_shape_is_seen(change: Callable[[dict[str, Any]], object], fault: str) -> None:
    """Rule: an unknown name, a missing field, another type, a null and an unknown word are each a fault."""
    (found,) = broken(change)
    assert found.startswith(f"subscription.{fault}")


def test_a_wrong_event_is_seen() -> None:
    """Rule: also of the event itself, and of what it says was before."""
    event = json.loads(snapshot("customer.subscription.renamed", objects.subscription("sub_1"), second=START))
    event["data"]["previous_attributes"] = {"quantity": 3}
    assert event_faults(event) == [
        "event.type: 'customer.subscription.renamed' is none of its values",
        "event.data.previous_attributes.quantity: no such field",
    ]
