"""An operator handles events again: from the dead letters, chosen by what they say and whose they are."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest

from kgents_billing.handlers.replay import Choice, Chosen, Wanted, open_letters, replay, replay_letter
from kgents_billing.sinks.store import Committed
from kgents_billing.sinks.store.owners import Owners
from kgents_common.errors import PermanentError

from .lives import START, Life, snapshot
from .test_money_in_any_order import CUSTOMER, money_life
from .told import ToldBilling, told_billing

AT = datetime(2026, 11, 5, tzinfo=UTC)


def test_an_event_is_wanted_by_id_type_and_time() -> None:
    """Rule: no filter wants all; a type is known dotted, and as a subject has it."""
    assert Wanted().fits("evt_1", "invoice.paid", AT)
    assert Wanted(types=frozenset({"invoice.paid"})).fits("evt_1", "invoice_paid", AT)
    assert not Wanted(types=frozenset({"invoice.paid"})).fits("evt_1", "invoice.voided", AT)
    assert not Wanted(ids=frozenset({"evt_2"})).fits("evt_1", "invoice.paid", AT)
    assert not Wanted(since=AT.replace(day=6)).fits("evt_1", "invoice.paid", AT)
    assert not Wanted(until=AT.replace(day=4)).fits("evt_1", "invoice.paid", AT)


async def chosen(billing: ToldBilling, wanted: Wanted, bodies: list[bytes]) -> tuple[list[bytes], int]:
    """What is left of these bodies, and how many nobody knows the owner of."""

    async def found() -> AsyncIterator[Chosen]:
        for body in bodies:
            yield Chosen(billing.origin(body), "")

    choice = Choice(wanted, Owners(billing.pool))
    return [one.origin.body async for one in choice.of(found())], choice.unknown


async def test_an_event_is_wanted_by_its_customer_and_its_tenant(database_url: str) -> None:
    """Rule: whose an event is may be in no word of its own: what other events taught counts."""
    bodies, other = money_life(), Life(at=START, tenant="globex").wait(5).become("active")
    everything = [*bodies, *(one.body for one in other.told), b"{}"]
    async with told_billing(database_url) as billing:
        # Before anything is known, only what says it itself; then the rest is counted, not guessed.
        kept, unknown = await chosen(billing, Wanted(tenants=frozenset({"acme"})), everything)
        assert (kept, unknown) == (bodies[:1], 6)
        for body in everything[:-1]:
            await billing.take(body)
        for wanted in (Wanted(tenants=frozenset({"acme"})), Wanted(customers=frozenset({CUSTOMER}))):
            assert await chosen(billing, wanted, everything) == (bodies, 1)
        both = Wanted(customers=frozenset({CUSTOMER}), tenants=frozenset({"globex"}))
        assert await chosen(billing, both, everything) == ([], 1)
        theirs = Wanted(tenants=frozenset({"globex"}))
        assert await chosen(billing, theirs, everything) == ([one.body for one in other.told], 1)
        assert (await chosen(billing, Wanted(), everything))[0] == everything


async def test_dead_letters_are_replayed_and_settled(database_url: str) -> None:
    """Rule: what can be handled is, and is settled; what cannot stays open, with why it cannot now; nothing
    is told twice."""
    good, meter = money_life()[0], "billing.meter.no_meter_found"
    broken = snapshot(
        "customer.subscription.updated", {"id": "sub_b", "metadata": {"tenant_id": "acme"}}, second=START
    )
    async with told_billing(database_url) as billing:
        for number, (kind, body) in enumerate([("checkout.session.completed", good), ("x", broken)]):
            await billing.store.bury(f"evt_{number}", kind, billing.origin(body), "defect", "")
        thin = (
            f'{{"id":"evt_m","object":"v2.core.event","type":"v1.{meter}","created":"2026-11-05T12:00:00Z",'
            '"livemode":false}'
        ).encode()
        await billing.take(thin)

        async def handle(one: Chosen) -> Committed:
            assert one.letter is not None
            return await replay_letter(billing.processor, billing.letters, one.letter)

        only = [one.label async for one in open_letters(billing.letters, Wanted(types=frozenset({meter})))]
        assert len(only) == 1
        outcomes = await replay(open_letters(billing.letters, Wanted()), handle)
        assert outcomes["applied"] == 1
        assert sum(count for name, count in outcomes.items() if name.startswith("not handled")) == 2
        assert [letter.code for letter in await billing.letters.find()] == [
            "unreadable_object",
            "meter_error",
        ]
        (settled,) = await billing.letters.find(state="replayed")
        with pytest.raises(PermanentError):
            await replay_letter(billing.processor, billing.letters, settled)


async def test_a_defect_with_one_event_does_not_end_a_replay(database_url: str) -> None:
    """Rule: the others are handled; what failed is said."""
    async with told_billing(database_url) as billing:

        async def found() -> AsyncIterator[Chosen]:
            for body in money_life()[:3]:
                yield Chosen(billing.origin(body), "")

        async def handle(one: Chosen) -> Committed:
            if one.origin.seq == 2:
                raise ValueError("a defect")
            return await billing.processor.process(one.origin)

        outcomes = await replay(found(), handle)
        assert (outcomes["failed: ValueError"], outcomes["applied"]) == (1, 2)
