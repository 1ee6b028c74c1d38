"""What a tenant may use is right now, says why, and does not depend on the order of events."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from kgents_billing.model.access import Access
from kgents_billing.model.entitlement import entitlements, reading_of
from kgents_billing.model.projection import content_digest, former_digest, is_same, project
from kgents_billing.model.subscription import Subscription, past_due_since
from kgents_devstack.stripe import START, Life, objects, random_life, snapshot
from kgents_devstack.stripe.objects import MONTH

from .lives import Billing

DAY = 86_400


def at(second: float) -> datetime:
    return datetime.fromtimestamp(second, UTC)


def taken(life: Life, *, shuffled: int | None = None) -> Subscription:
    told = list(life.told)
    if shuffled is not None:
        random.Random(shuffled).shuffle(told)
    billing = Billing()
    for one in told:
        billing.take(one.body)
    return billing.rows[life.name]


def given(row: Subscription, second: float, grace: float | None = None) -> tuple[str, str]:
    """Access and why, at a second."""
    found = reading_of(row, None if grace is None else timedelta(days=grace), at(second))
    return found.access.value, found.why


def active(**fields: Any) -> Life:
    life = Life().wait(5).become("active").wait(5)
    return life.change(**fields) if fields else life


def test_grace_counts_from_when_it_became_past_due() -> None:
    """Rule: an upgrade's invoice that fails on day 20 has its days of grace from day 20 on, in any order."""
    life = active().wait(20 * DAY).become("past_due")
    for seed in range(6):
        row = taken(life, shuffled=seed)
        assert past_due_since(row) == int(life.at)
        assert given(row, life.at + 6 * DAY, grace=7) == ("grace", "past_due")
        assert given(row, life.at + 7 * DAY, grace=7) == ("suspended", "grace_over")
    life.wait(DAY).become("active").wait(DAY).become("past_due")
    assert {past_due_since(taken(life, shuffled=seed)) for seed in range(6)} == {int(life.at)}


def mixed() -> dict[str, Any]:
    """A year's item, begun later, beside a month's."""
    thing = {**objects.subscription("sub_mixed"), "status": "active"}
    month = thing["items"]["data"][0]
    year = {
        **month, "id": "si_year", "price": objects.price("price_year"),
        "current_period_start": START + 10 * DAY, "current_period_end": START + 375 * DAY,
    }  # fmt: skip
    thing["items"] = {**thing["items"], "data": [year, month]}
    return thing


def test_a_year_beside_a_month_is_no_year_of_grace() -> None:
    """Rule: the period is that of the item whose period ends first; grace ends with it."""
    billing = Billing()
    was = mixed()
    billing.take(snapshot("customer.subscription.created", was, second=START))
    late = {**was, "status": "past_due"}
    billing.take(
        snapshot("customer.subscription.updated", late, second=START + 5 * DAY, previous={"status": "active"})
    )
    row = billing.rows["sub_mixed"]
    assert (row.state.period_start, row.state.period_end) == (START, START + MONTH)
    assert given(row, START + MONTH - 1) == ("grace", "past_due")
    assert given(row, START + MONTH) == ("suspended", "grace_over")


def test_the_span_of_before_is_no_difference() -> None:
    """Rule: rows and keys of the version before, whose period spanned all items, stay what they are."""
    state = project(mixed())
    old = msgspec.structs.replace(
        state, period_start=START, period_end=START + 375 * DAY, span_start=None, span_end=None, tenant=None
    )
    assert content_digest(old) != content_digest(state)
    assert content_digest(old) == former_digest(state)
    assert is_same(old, state, tenant="acme")


@pytest.mark.parametrize(
    ("life", "second", "wanted"),
    [
        (active(), START + DAY, ("granted", "active")),
        (active(), START + MONTH + 1800, ("granted", "active")),
        (active(), START + MONTH + DAY, ("grace", "renewal_not_heard_of")),
        (active(), START + MONTH + 4 * DAY, ("suspended", "period_over")),
        (active().cancel_at_period_end(), START + MONTH - 1, ("granted", "active")),
        (active().cancel_at_period_end(), START + MONTH, ("revoked", "cancel_at_passed")),
        (active(cancel_at=START + DAY), START + DAY, ("revoked", "cancel_at_passed")),
        (active(pause_collection={"behavior": "void", "resumes_at": START + 9 * DAY}), START + DAY,
         ("suspended", "collection_paused")),
        (active(pause_collection={"behavior": "void", "resumes_at": START + 9 * DAY}), START + 9 * DAY,
         ("granted", "active_without_collection")),
        (active(pause_collection={"behavior": "mark_uncollectible", "resumes_at": None}), START + DAY,
         ("granted", "active_without_collection")),
        (Life(trial_days=14), START + 13 * DAY, ("granted", "trialing")),
        (Life(trial_days=14), START + 15 * DAY, ("suspended", "trial_over")),
        (active().become("paused"), START + DAY, ("suspended", "paused")),
        (active().become("unpaid"), START + DAY, ("suspended", "unpaid")),
        (Life(), START + DAY, ("none", "incomplete")),
        (active().end(), START + DAY, ("revoked", "ended")),
        (active(status="dreaming"), START + DAY, ("granted", "unknown_status")),
        (Life().change(status="dreaming"), START + DAY, ("none", "unknown_status")),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else "",
)  # fmt: skip
def test_access_is_right_now_and_says_why(life: Life, second: int, wanted: tuple[str, str]) -> None:
    """Rule: the table of `docs/access.md`, row by row, in any order of events."""
    for seed in range(4):
        assert given(taken(life, shuffled=seed), second) == wanted


def test_what_should_have_spoken_by_now_is_not_settled() -> None:
    """Rule: a trial, a period or a wish to end that is over without a word is asked for, and said so."""
    row = taken(Life(trial_days=14))
    assert entitlements("acme", [row], None, at(START + DAY)).is_settled
    late = entitlements("acme", [row], None, at(START + 15 * DAY))
    assert (late.access, late.why, late.is_settled) == (Access.SUSPENDED, "trial_over", False)
    assert entitlements("acme", [], None, at(START)).why == "no_subscription"


def test_access_and_settledness_do_not_depend_on_order() -> None:
    """Rule: without a key too, every order ends as the order in which it happened, at every moment."""
    roll = random.Random(5)
    for number in range(60):
        life = random_life(roll, same_second=0.0)
        if roll.random() < 0.3:
            life.wait(5).change(status="dreaming")
        wanted = taken(life)
        row = taken(life, shuffled=number)
        assert row.needs_refetch == wanted.needs_refetch
        for second in (life.at, life.at + 3 * DAY, life.at + 40 * DAY):
            assert reading_of(row, None, at(second)) == reading_of(wanted, None, at(second))


def test_the_end_of_an_old_subscription_nobody_heard_of_is_told() -> None:
    """Rule: what lived longer than an unpaid one may had started; its end is told, and its start."""
    life = active().wait(90 * DAY).end()
    billing = Billing()
    billing.take(life.told[-1].body)
    assert sorted(billing.facts) == [f"sub.ended:{life.name}", f"sub.started:{life.name}:acme"]
    young = active().end()
    billing.take(young.told[-1].body)
    assert f"sub.ended:{young.name}" not in billing.facts
