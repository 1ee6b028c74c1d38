"""Owners, entries, access and facts of random worlds, told in any order, are those of the order in time."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import pytest

from kgents_billing.model.access import Reading
from kgents_billing.model.decision import Outcome
from kgents_billing.model.entitlement import reading_of
from kgents_billing.model.entries import Entry, sums
from kgents_billing.model.known import Options
from kgents_billing.model.ownership import history
from kgents_billing.model.subscription import Subscription, past_due_since

from .lives import Billing
from .worlds import ACCOUNT, DAY, World


def taken(world: World, bodies: Iterable[bytes]) -> Billing:
    """Told in this order; what waits to learn who paid is tried again as long as that helps."""
    options = Options(livemode=world.livemode, accounts={ACCOUNT: None})
    billing, left = Billing(options=options), list(bodies)
    for _ in range(len(left) + 1):
        left = [body for body in left if billing.take(body).outcome is Outcome.QUARANTINED]
    assert left == []
    assert billing.told_twice == 0
    return billing


def without_nothing(sums: Counter[str]) -> dict[str, int]:
    return {currency: amount for currency, amount in sums.items() if amount}


def held(billing: Billing) -> Counter[str]:
    """What entries say that Stripe's balance holds, payment by payment."""
    names = billing.payment_names
    groups: dict[str, list[Entry]] = {}
    for _, entry in billing.entries.values():
        groups.setdefault(names.get(entry.of, entry.of), []).append(entry)
    found: Counter[str] = Counter()
    for group in groups.values():
        for one in sums(group):
            found[one.currency] += one.balance
    return found


def accesses(row: Subscription, world: World) -> list[Reading]:
    """What a subscription gives at every second at which something happened, and long afterwards."""
    moments = [*sorted(set(world.seconds)), world.second + 2 * DAY, world.second + 60 * DAY]
    return [reading_of(row, timedelta(days=3), datetime.fromtimestamp(second, UTC)) for second in moments]


@pytest.mark.parametrize("orders", [150, pytest.param(10_000, marks=pytest.mark.long)])
def test_any_order_is_the_order_it_happened_in(orders: int) -> None:
    """Rule: with moves, parts, refunds in every state, disputes, credit notes, payments past Stripe, mixed
    intervals, pauses, accounts, both modes, duplicates and changes of one second (P6); entries equal the
    balance, to the minor unit."""
    roll, compared, marked, noted = random.Random(2026), 0, 0, 0
    for _ in range(orders // 5):
        world = World(roll)
        world.live(roll.randrange(4, 16))
        wanted = taken(world, world.bodies)
        assert without_nothing(held(wanted)) == without_nothing(world.balance)
        notes = {f"cn:{note['id']}:issued" for note in world.notes}
        notes |= {f"cn:{note['id']}:void" for note in world.notes if note["status"] == "void"}
        assert {key for key in wanted.facts if key.startswith("cn:")} == notes
        noted += len(notes)
        now = world.second + 1
        for _ in range(5):
            bodies = [*world.bodies, *roll.sample(world.bodies, k=len(world.bodies) // 5)]
            roll.shuffle(bodies)
            billing = taken(world, bodies)
            assert billing.facts == wanted.facts
            assert billing.entries == wanted.entries
            assert history(billing.words, now) == history(wanted.words, now)
            for name, row in billing.rows.items():
                # Changes of one second that undo each other: marked for a look, never silently wrong.
                if row.needs_refetch or wanted.rows[name].needs_refetch:
                    marked += 1
                    continue
                compared += 1
                assert row.tenant == wanted.rows[name].tenant == world.owners[name]
                assert past_due_since(row) == past_due_since(wanted.rows[name])
                assert accesses(row, world) == accesses(wanted.rows[name], world)
    assert compared > 5 * marked
    assert noted > orders // 20


def test_the_other_mode_and_an_account_nobody_listed_tell_nothing() -> None:
    """Rule: the same world tells a system of the other mode, or without the account, nothing at all."""
    roll = random.Random(3)
    for _ in range(10):
        world = World(roll)
        world.live(5)
        for options in (Options(livemode=not world.livemode, accounts={ACCOUNT: None}), Options()):
            if options.livemode is None and world.account is None:
                continue
            billing = Billing(options=options)
            assert {billing.take(body).outcome for body in world.bodies} == {Outcome.IGNORED}
            assert (billing.facts, billing.entries, billing.rows) == ({}, {}, {})
