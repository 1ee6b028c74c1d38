"""What is decided is committed whole: on a real Postgres, in any order, at once, by several workers."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from contextlib import AsyncExitStack

import pytest

from kgents_billing.handlers.process import NeedsKeyError
from kgents_billing.model.decision import Outcome
from kgents_billing.model.event import MalformedEventError
from kgents_billing.model.projection import digest, project

from .lives import START, Life, new_id, random_life, reference, snapshot
from .test_any_order import delivered
from .told import KnownStripe, ToldBilling, told_billing


async def test_a_life_in_any_order_ends_as_the_reference(database_url: str) -> None:
    """Rule: order is not assumed (P6); what is stored equals what the pure model decides."""
    roll = random.Random(3)
    async with told_billing(database_url) as billing:
        for _ in range(25):
            life = random_life(roll, same_second=0.0)
            bodies = [one.body for one in life.told]
            bodies += roll.sample(bodies, k=min(2, len(bodies)))
            roll.shuffle(bodies)
            for body in bodies:
                await billing.take(body)
            wanted = reference(life.told)
            states, facts = await billing.states(), await billing.facts()
            assert {life.name: states[life.name]} == wanted.states()
            assert {key: facts[key] for key in wanted.facts} == wanted.facts
            told = [key for key, (_, body) in facts.items() if life.name in body.decode()]
            assert sorted(told) == sorted(wanted.facts)


async def test_many_at_once_write_one_after_the_other(database_url: str) -> None:
    """Rule: a write names the version it was made from; the overtaken decides again."""
    life = Life(at=START).wait(5).become("trialing").wait(5)
    for quantity in itertools.islice(itertools.cycle((2, 3)), 12):
        life.change_item(quantity=quantity).wait(5)
    async with told_billing(database_url) as billing:
        bodies = [one.body for one in life.told] * 2
        random.Random(5).shuffle(bodies)
        await asyncio.gather(*(billing.take(body) for body in bodies))
        wanted = reference(life.told)
        assert await billing.states() == wanted.states()
        assert await billing.facts() == wanted.facts


async def test_many_lives_told_badly_to_several_workers_at_once(database_url: str) -> None:
    """Rule: duplicates, two ids for one change, same-second changes, lateness and drops, with real races."""
    roll = random.Random(11)
    lives = {life.name: life for life in (random_life(roll) for _ in range(120))}
    stripe = KnownStripe(lambda name: (lives[name].now, int(lives[name].at) + 60))
    arriving: list[bytes] = []
    dropped: list[bytes] = []
    for life in lives.values():
        arrived, lost = delivered(roll, life.told)
        arriving += [body for _, body in arrived]
        dropped += lost
    roll.shuffle(arriving)
    async with AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(told_billing(database_url, stripe)) for _ in range(4)]

        async def work(worker: ToldBilling, bodies: list[bytes]) -> None:
            for body in bodies:
                await worker.take(body)

        # Two hands to a worker, and neighbours in the list go to different hands.
        hands = [workers[n % 4] for n in range(8)]
        await asyncio.gather(*(work(hand, arriving[n::8]) for n, hand in enumerate(hands)))
        await work(workers[0], dropped)
        for _ in range(30):
            if not await workers[0].refetched():
                break
        states, facts = await workers[0].states(), await workers[0].facts()
    wanted = [reference(life.told) for life in lives.values()]
    assert len(dropped) > 3
    assert states == {name: state for one in wanted for name, state in one.states().items()}
    assert facts == {key: fact for one in wanted for key, fact in one.facts.items()}


async def test_an_event_without_a_tenant_waits_and_is_freed_by_what_names_it(database_url: str) -> None:
    """Rule: what cannot be mapped yet is kept whole, and handled as soon as its customer is known."""
    life = Life(tenant=None).wait(3).become("active")
    async with told_billing(database_url) as billing:
        for one in life.told:
            assert (await billing.take(one.body)).outcome is Outcome.QUARANTINED
        assert await billing.facts() == {}
        assert await billing.letters.counts() == (2, 0)
        customer = {"id": life.now["customer"], "object": "customer", "metadata": {"tenant_id": "acme"}}
        await billing.take(snapshot("customer.updated", customer, second=START + 9))
        due = await billing.letters.due(50)
        assert [bytes(one.body) for one in due] == [one.body for one in life.told]
        for one in due:
            await billing.take(bytes(one.body))
        assert await billing.letters.counts() == (0, 0)
        assert {tenant for tenant, _ in (await billing.facts()).values()} == {"acme"}
        assert await billing.states() == {life.name: digest(project(life.now))}


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
async def test_whose_a_customer_is_does_not_depend_on_the_order_of_words(
    database_url: str, order: tuple[int, ...]
) -> None:
    """Rule: the owner's word on the customer stands above a payer's; of equal words the later one."""

    def words(kind: str, second: int, **fields: object) -> bytes:
        return snapshot(kind, {"customer": "cus_w", "metadata": {}, **fields}, second=second)

    bodies = [
        words("checkout.session.completed", START + 50, id="cs_1", client_reference_id="payer",
              mode="subscription", payment_status="paid"),
        words("customer.updated", START + 10, id="cus_w", metadata={"tenant_id": "acme"}),
        words("customer.updated", START + 20, id="cus_w", metadata={"tenant_id": "globex"}),
    ]  # fmt: skip
    async with told_billing(database_url) as billing:
        for place in order:
            await billing.take(bodies[place])
        async with billing.pool.connection() as connection:
            row = await (
                await connection.execute("select tenant from billing.customer where id = 'cus_w'")
            ).fetchone()
        assert row == ("globex",)


async def test_stripes_own_word_on_the_customer_is_asked_for(database_url: str) -> None:
    """Rule: before anything waits, the customer's metadata is looked at."""
    life = Life(tenant=None).wait(3).become("active")
    stripe = KnownStripe()
    stripe.customers[life.now["customer"]] = {"tenant_id": "acme"}
    async with told_billing(database_url, stripe) as billing:
        assert (await billing.take(life.told[1].body)).outcome is Outcome.APPLIED
        assert {tenant for tenant, _ in (await billing.facts()).values()} == {"acme"}


async def test_a_dispute_is_known_by_its_charge(database_url: str) -> None:
    """Rule: a dispute names a payment and no customer, and no event says whose that is: Stripe is asked."""
    life = Life().wait(5).pay().wait(5).dispute()
    assert life.charge is not None
    stripe = KnownStripe()
    async with told_billing(database_url, stripe) as billing:
        sent = [one for one in life.told if one.type != "invoice_payment.paid"]
        outcomes = [(await billing.take(one.body)).outcome for one in sent]
        assert outcomes.count(Outcome.QUARANTINED) == 2
        stripe.objects[f"/v1/charges/{life.charge['id']}"] = (life.charge, START)
        async with billing.pool.connection() as connection:
            await connection.execute("update billing.quarantine set next_at = now()")
        for one in await billing.letters.due(50):
            assert (await billing.take(bytes(one.body))).outcome is Outcome.APPLIED
        told = [key.split(":")[0] for key, (tenant, _) in (await billing.facts()).items() if tenant == "acme"]
        assert sorted(told) == ["dispute", "dispute", "pay.ok", "sub.started"]


def thin(kind: str, related: tuple[str, str], *, twin: str | None = None, name: str | None = None) -> bytes:
    """A thin event's body."""
    return json.dumps(
        {
            "id": name or new_id("evt_thin"),
            "object": "v2.core.event",
            "type": f"v1.{kind}",
            "created": "2026-11-05T12:00:00.000Z",
            "livemode": False,
            "related_object": {
                "type": related[0],
                "id": related[1],
                "url": f"/v1/{related[0]}s/{related[1]}",
            },
            **({"snapshot_event": twin} if twin else {}),
        }
    ).encode()


@pytest.mark.parametrize("is_thin_first", [True, False])
async def test_a_thin_event_and_its_twin_are_one(database_url: str, is_thin_first: bool) -> None:
    """Rule: both shapes of one change lead to what one of them would, whichever comes first."""
    life = Life(at=START).wait(5).become("active").wait(5).change_item(quantity=4)
    stripe = KnownStripe()
    pairs = []
    for one in life.told:
        stripe.events[one.id] = one.body
        pairs.append((one.body, thin(one.type, ("subscription", life.name), twin=one.id)))
    async with told_billing(database_url, stripe) as billing:
        for snapshot_body, thin_body in pairs:
            first, second = (thin_body, snapshot_body) if is_thin_first else (snapshot_body, thin_body)
            assert (await billing.take(first)).outcome is Outcome.APPLIED
            assert (await billing.take(second)).outcome is Outcome.DUPLICATE
        wanted = reference(life.told)
        assert await billing.states() == wanted.states()
        assert await billing.facts() == wanted.facts


async def test_a_thin_event_alone_fetches_what_it_is_about(database_url: str) -> None:
    """Rule: without a twin the object as it is now tells what there is to tell."""
    life = Life(at=START).wait(5).become("active")
    stripe = KnownStripe()
    stripe.objects[f"/v1/subscriptions/{life.name}"] = (life.now, START + 7)
    async with told_billing(database_url, stripe) as billing:
        await billing.take(thin("customer.subscription.active", ("subscription", life.name)))
        assert await billing.states() == reference(life.told).states()
        assert list(await billing.facts()) == [f"sub.started:{life.name}:acme"]


async def test_a_thin_event_without_a_key_is_refused_with_a_hint(database_url: str) -> None:
    """Rule: what nobody can handle is set aside with a reason, never dropped."""
    async with told_billing(database_url) as billing:
        with pytest.raises(NeedsKeyError) as refused:
            await billing.take(thin("invoice.paid", ("invoice", "in_1")))
        assert "STRIPE_API_KEY" in str(refused.value.hint)


async def test_a_replay_tells_nothing_twice(database_url: str) -> None:
    """Rule: an operator may handle anything again; semantic keys stand."""
    life = Life(at=START).wait(5).become("active").wait(5).end()
    async with told_billing(database_url) as billing:
        for one in life.told:
            await billing.take(one.body)
        before = await billing.facts()
        for one in life.told:
            assert (await billing.take(one.body)).outcome is Outcome.DUPLICATE
            assert (await billing.take(one.body, again=True)).facts == 0
        assert await billing.facts() == before
        assert await billing.states() == reference(life.told).states()


async def test_a_meter_error_becomes_a_dead_letter(database_url: str) -> None:
    """Rule: usage that Stripe did not take is an operator's, not silence."""
    body = thin("billing.meter.no_meter_found", ("billing.meter", "mtr_1"))
    async with told_billing(database_url, KnownStripe()) as billing:
        assert (await billing.take(body)).outcome is Outcome.DEAD
        (letter,) = await billing.letters.find()
        assert (letter.code, bytes(letter.body)) == ("meter_error", body)


async def test_what_is_no_event_is_malformed(database_url: str) -> None:
    """Rule: a stored message that cannot be read says so; it is set aside by whoever took it."""
    async with told_billing(database_url) as billing:
        with pytest.raises(MalformedEventError):
            await billing.take(b"{}")
