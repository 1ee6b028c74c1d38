"""A subscription's events may come in any order, twice, late or under two ids: the same state, each fact
once."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable

import pytest

from .lives import START, Billing, Life, Told, new_id, random_life, reference


def ended_life(gap: float) -> Life:
    """Six events that end."""
    life = Life(at=START).wait(gap).become("active").wait(gap).change_item(quantity=3)
    return life.wait(gap).become("past_due").wait(gap).become("active").wait(gap).end()


def running_life(gap: float) -> Life:
    """Six events that go on; two values come back."""
    life = Life(at=START).wait(gap).become("trialing").wait(gap).change(cancel_at_period_end=True)
    life.wait(gap).change(cancel_at_period_end=False).wait(gap).become("active")
    return life.wait(gap).change_item(quantity=2)


# Changes of one second, of two neighbouring ones (half a second apart has both), and further apart than that.
GAPS = [pytest.param(gap, id=f"every_{gap}_s") for gap in (0, 0.5, 3)]
GAPS.append(pytest.param(1, id="every_1_s", marks=pytest.mark.long))


@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("make", [ended_life, running_life])
def test_every_permutation_of_a_life_ends_alike(make: Callable[[float], Life], gap: float) -> None:
    """Rule: order is not assumed (P6); also where all six share a second, and without asking Stripe."""
    life = make(gap)
    wanted = reference(life.told)
    assert len(life.told) == 6
    for order in itertools.permutations(life.told):
        billing = Billing()
        for one in order:
            billing.take(one.body)
        assert billing.states() == wanted.states()
        assert not billing.rows[life.name].needs_refetch
        assert billing.facts == wanted.facts
        assert billing.told_twice == 0


def delivered(roll: random.Random, told: list[Told]) -> tuple[list[tuple[float, bytes]], list[bytes]]:
    """Deliveries by time: duplicates, two ids for one change, lateness; and what was dropped."""
    arriving: list[tuple[float, bytes]] = []
    dropped: list[bytes] = []
    for one in told:
        bodies = [one.body]
        if roll.random() < 0.05:
            bodies.append(one.body)
        if roll.random() < 0.05:
            bodies.append(json.dumps({**json.loads(one.body), "id": new_id("evt")}).encode())
        for body in bodies:
            late = roll.choice((0.01, 0.2, 0.2, 1.5, 4)) if roll.random() < 0.9 else roll.uniform(60, 20_000)
            if roll.random() < 0.02:
                dropped.append(body)
            else:
                arriving.append((one.at + roll.random() * late, body))
    return sorted(arriving, key=lambda pair: pair[0]), dropped


def live_and_compare(roll: random.Random, *, has_key: bool) -> Billing:
    """One random life told badly; what reconciliation brings comes at the end."""
    life = random_life(roll, same_second=roll.choice((0.1, 0.5, 0.8)))
    arriving, dropped = delivered(roll, life.told)
    now = 0.0
    billing = Billing(lambda _: (life.as_of(now), int(now)) if has_key else (_ for _ in ()).throw(KeyError))
    if not has_key:
        billing.fetch = None
    for now, body in arriving:  # noqa: B007 the fetch looks at it
        billing.take(body)
    now = max(now, life.at) + 60
    for body in dropped:
        billing.take(body)
    billing.look_again()
    wanted = reference(life.told)
    if has_key:
        assert billing.states() == wanted.states()
    else:
        assert billing.states() == wanted.states() or billing.rows[life.name].needs_refetch
    assert billing.facts == wanted.facts
    assert billing.told_twice == 0
    return billing


@pytest.mark.parametrize("has_key", [True, False], ids=["with_key", "without_key"])
def test_random_lives_end_as_told_in_order(has_key: bool) -> None:
    """Rule: with a key the state is exact; without one exact or marked as uncertain, never silently wrong."""
    roll = random.Random(4)
    for _ in range(300):
        live_and_compare(roll, has_key=has_key)


@pytest.mark.long
@pytest.mark.parametrize("has_key", [True, False], ids=["with_key", "without_key"])
def test_ten_thousand_random_lives(has_key: bool) -> None:
    """Rule: the same, ten thousand times, of which `make test` runs three hundred."""
    roll = random.Random(10_000)
    for _ in range(10_000):
        live_and_compare(roll, has_key=has_key)
