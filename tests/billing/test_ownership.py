"""Whose a subscription or a customer is: one truth with a history, whatever order its words come in."""

from __future__ import annotations

import itertools
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from kgents_billing.model.decision import Outcome
from kgents_billing.model.ownership import Kind, Period, SaidBy, Word, assigned_at, history, owner_at
from kgents_billing.sinks.store import Store
from kgents_billing.sinks.store.assign import Assignments
from kgents_billing.sinks.store.tenants import Tenants
from kgents_common.crash import CrashPoints
from kgents_devstack.stripe import START, Life, snapshot

from .lives import Billing, reference
from .told import ToldBilling, told_billing

SUB = Kind.SUBSCRIPTION


def moved_life(gap: float = 5) -> Life:
    """Begun by acme, moved to globex, then enlarged to nine seats."""
    life = Life(at=START, tenant="acme").wait(gap).become("active").wait(gap)
    life.change(metadata={"tenant_id": "globex"}).wait(gap)
    return life.change_item(quantity=9)


@pytest.mark.parametrize("gap", [0, 0.4, 5])
def test_a_subscription_is_whose_its_last_state_says(gap: float) -> None:
    """Rule: not the last arrival's, also within one second; both are told of the move, in every order."""
    life = moved_life(gap)
    wanted = reference(life.told)
    assert wanted.rows[life.name].tenant == "globex"
    for order in itertools.permutations(life.told):
        billing = Billing()
        for one in order:
            billing.take(one.body)
        assert billing.rows[life.name].tenant == "globex"
        assert billing.rows[life.name].state.items[0].quantity == 9
        assert billing.facts == wanted.facts
        assert billing.told_twice == 0
    told = sorted(
        (tenant, key.split(":")[0], key.rpartition(":")[2]) for key, (tenant, _) in wanted.facts.items()
    )
    assert [(t, k) for t, k, _ in told] == [
        ("acme", "sub.moved"),
        ("acme", "sub.started"),
        ("globex", "sub.moved"),
        ("globex", "sub.started"),
        ("globex", "sub.updated"),
    ]
    assert [d for _, k, d in told if k == "sub.moved"] == ["out", "in"]


def test_neither_is_told_whose_the_other_is() -> None:
    """Rule: a tenant sees only itself (P8): not in the body of a fact, and not in its key."""
    for key, (tenant, body) in reference(moved_life().told).facts.items():
        other = "globex" if tenant == "acme" else "acme"
        assert other not in key
        assert other.encode() not in body


def test_random_moves_end_alike() -> None:
    """Rule: owner, history and facts depend on what was said, not on when it came."""
    roll = random.Random(7)
    for _ in range(150):
        life = Life(at=START, tenant="a").wait(2).become("active")
        for _ in range(roll.randrange(1, 6)):
            life.wait(roll.choice((0.2, 3, 60)))
            if roll.random() < 0.6:
                life.change(metadata={"tenant_id": roll.choice("abc")})
            else:
                life.change_item(quantity=1 + life.now["items"]["data"][0]["quantity"] % 3)
        wanted, told = reference(life.told), list(life.told)
        roll.shuffle(told)
        billing = Billing()
        for one in told:
            billing.take(one.body)
        row = billing.rows[life.name]
        assert row.needs_refetch or row.tenant == life.now["metadata"]["tenant_id"]
        assert billing.facts == wanted.facts
        assert billing.told_twice == 0
        now = int(life.at) + 1
        assert history(billing.words, now) == history(wanted.words, now)


def test_a_history_has_its_days() -> None:
    """Rule: who owned it at a second is read off every word, known before or said afterwards."""
    words = [
        Word(SUB, "s", 30, "c", "b"),
        Word(SUB, "s", 10, "a"),
        Word(SUB, "s", 20, "b", "a"),
    ]
    for order in itertools.permutations(words):
        assert [owner_at(order, second) for second in (5, 10, 19, 20, 29, 30, 99)] == list("aaabbcc")
        assert history(order, 100) == [Period("a", None, 20), Period("b", 20, 30), Period("c", 30, None)]
    assert owner_at(words[:1], 5) == "b"
    given = Word(SUB, "s", 25, "z", "b", SaidBy.OPERATOR)
    back = Word(SUB, "s", 40, "", "z", SaidBy.OPERATOR)
    assert history([*words, given, back], 100)[2:] == [Period("z", 25, 40), Period("c", 40, None)]
    assert assigned_at([given, back], 45) is None


async def row_of(billing: ToldBilling, name: str) -> Any:
    stored = await billing.subscriptions.get(name)
    assert stored is not None
    return stored.row


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (2, 3, 0, 1), (3, 2, 1, 0)], ids=str)
async def test_the_same_on_postgres_and_a_forced_replay_flips_nothing(
    database_url: str, order: tuple[int, ...]
) -> None:
    """Rule: an operator may replay the oldest event: whose it is now stays."""
    life = moved_life()
    async with told_billing(database_url) as billing:
        for place in order:
            await billing.take(life.told[place].body)
        assert (await row_of(billing, life.name)).tenant == "globex"
        assert await billing.facts() == reference(life.told).facts
        await billing.take(life.told[0].body, again=True)
        assert (await row_of(billing, life.name)).tenant == "globex"
        assert await billing.facts() == reference(life.told).facts


@asynccontextmanager
async def with_keys(url: str, *tenants: str) -> AsyncIterator[ToldBilling]:
    """A billing whose keyring names these tenants."""
    async with told_billing(url) as billing:
        billing.store = Store(billing.pool, CrashPoints(None), tenants.__contains__)
        billing.processor._store = billing.store
        yield billing


async def settle(billing: ToldBilling) -> None:
    for one in await billing.letters.due(50):
        await billing.take(bytes(one.body))


async def test_a_name_no_key_knows_is_shown_and_opens_nothing(database_url: str) -> None:
    """Rule: a slip in metadata makes no tenant: it waits, under that name, until an operator says so."""
    life = Life(tenant="acmee").wait(5).become("active")
    async with with_keys(database_url, "acme") as billing:
        tenants = Tenants(billing.pool, ("acme",).__contains__)
        for one in life.told:
            assert (await billing.take(one.body)).outcome is Outcome.QUARANTINED
        assert await billing.facts() == {}
        (unknown,) = await tenants.unknown()
        assert (unknown.named, unknown.events) == ("acmee", 2)
        assert await tenants.open("acmee") == 2
        await settle(billing)
        assert {tenant for tenant, _ in (await billing.facts()).values()} == {"acmee"}
        assert await tenants.unknown() == []


async def test_a_tenant_whose_last_key_is_gone_is_one_still(database_url: str) -> None:
    """Rule: what is paid and owed does not wait for a key."""
    life = Life(tenant="acme").wait(5).become("active")
    async with with_keys(database_url, "acme") as billing:
        for one in life.told:
            await billing.take(one.body)
        billing.store._knows = lambda _: False
        life.wait(5).change_item(quantity=2)
        assert (await billing.take(life.told[-1].body)).outcome is Outcome.APPLIED


async def test_an_operator_gives_a_subscription_away(database_url: str) -> None:
    """Rule: the operator's word stands above metadata from then on; both are told, once; it can be taken
    back."""
    life = Life(tenant="acme").wait(5).become("active")
    async with told_billing(database_url) as billing:
        for one in life.told:
            await billing.take(one.body)
        assignments = Assignments(billing.pool)
        done = await assignments.assign(SUB, life.name, "globex", START + 100)
        assert (done.subscriptions, done.facts) == (1, 2)
        assert (await row_of(billing, life.name)).tenant == "globex"
        assert (await assignments.assign(SUB, life.name, "globex", START + 100)).facts == 0
        life.wait(200).change_item(quantity=4)
        await billing.take(life.told[-1].body)
        row = await row_of(billing, life.name)
        assert (row.tenant, row.state.items[0].quantity) == ("globex", 4)
        owners = {key.split(":")[0]: t for key, (t, _) in (await billing.facts()).items() if "updated" in key}
        assert owners == {"sub.updated": "globex"}
        await assignments.assign(SUB, life.name, "", START + 300)
        assert (await row_of(billing, life.name)).tenant == "acme"
        found = history(await assignments.words(SUB, life.name), START + 400)
        assert [period.tenant for period in found] == ["acme", "globex", "acme"]


async def test_assigning_a_customer_settles_what_waited(database_url: str) -> None:
    """Rule: quarantined events of a customer go to whom an operator says, with its subscriptions."""
    life = Life(tenant=None).wait(5).become("active")
    async with told_billing(database_url) as billing:
        for one in life.told:
            assert (await billing.take(one.body)).outcome is Outcome.QUARANTINED
        done = await Assignments(billing.pool).assign(Kind.CUSTOMER, life.now["customer"], "acme", START)
        assert done.freed == 2
        await settle(billing)
        assert await billing.letters.counts() == (0, 0)
        assert {tenant for tenant, _ in (await billing.facts()).values()} == {"acme"}


async def test_a_customer_that_moves_takes_along_what_names_nobody(database_url: str) -> None:
    """Rule: a subscription without a word of its own goes with its customer; of one's own word is kept."""
    silent, own = Life(tenant=None).wait(5).become("active"), Life(tenant="acme").wait(5).become("active")
    customer = silent.now["customer"]

    def says(tenant: str, second: int, **previous: Any) -> bytes:
        thing = {"id": customer, "object": "customer", "metadata": {"tenant_id": tenant}}
        return snapshot("customer.updated", thing, second=second, previous=previous or None)

    for life in (own,):
        for one in life.told:
            assert customer not in one.body.decode()
    async with told_billing(database_url) as billing:
        await billing.take(says("acme", START - 5))
        for one in (*silent.told, *own.told):
            await billing.take(one.body)
        await billing.take(says("globex", START + 50, metadata={"tenant_id": "acme"}))
        assert (await row_of(billing, silent.name)).tenant == "globex"
        assert (await row_of(billing, own.name)).tenant == "acme"
        moved = {
            key.rpartition(":")[2]: t for key, (t, _) in (await billing.facts()).items() if "moved" in key
        }
        assert moved == {"out": "acme", "in": "globex"}
        # What happened before it moved is still the first one's.
        silent.wait(2).change_item(quantity=7)
        await billing.take(silent.told[-1].body)
        (owner,) = {t for key, (t, _) in (await billing.facts()).items() if key.startswith("sub.updated")}
        assert owner == "acme"
