"""The poll of Stripe's events: what is missing is appended; its cursor never steps over a hole."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from kgents_billing.handlers.poll import OVERLAP, Poll
from kgents_billing.metrics import Metrics
from kgents_billing.model import event as events
from kgents_billing.sinks.store.cursors import Cursors
from kgents_billing.sinks.stripe_api import MissingObjectError, StripeApi
from kgents_common.clock import SystemClock
from kgents_common.errors import TransientError
from kgents_common.stripe_events import StripeEnvelope
from kgents_common.telemetry import new_registry
from kgents_devstack.stripe import StripeStandIn

from .lives import START, Life, snapshot
from .told import told_billing


class Kept:
    """Stands for EVENTS: keeps each event once."""

    def __init__(self) -> None:
        self.bodies: dict[str, bytes] = {}

    async def append(self, event: StripeEnvelope, body: bytes, *, received_at: datetime) -> bool:
        del received_at
        return self.bodies.setdefault(event.id, body) is body


@pytest.fixture
def stripe() -> Iterator[StripeStandIn]:
    with StripeStandIn() as stand_in:
        yield stand_in


def asking(stripe: StripeStandIn, key: str | None = None) -> StripeApi:
    return StripeApi(key or stripe.key, base_url=stripe.url, clock=SystemClock(), per_second=100)


def polling(api: StripeApi, kept: Kept, cursors: Cursors, **more: Any) -> Poll:
    return Poll(
        api,
        kept,
        cursors,
        first_days=3,
        metrics=Metrics(new_registry()),
        clock=SystemClock(),  # type: ignore[arg-type]
        **more,
    )


async def test_every_page_is_taken_and_the_cursor_follows(database_url: str, stripe: StripeStandIn) -> None:
    """Rule: all of it, across pages, each once; unknown types are left; then the next look begins there."""
    lives = [Life(at=START).wait(5).become("active") for _ in range(120)]
    for life in lives:
        for one in life.told:
            stripe.tell(one.body)
    stripe.tell(snapshot("issuing_card.created", {"id": "ic_1", "object": "issuing.card"}, second=START))
    async with told_billing(database_url) as billing:
        cursors, kept = Cursors(billing.pool), Kept()
        await cursors.advance("events", START)
        api = asking(stripe)
        poll = polling(api, kept, cursors)
        assert await poll.run() == 240
        assert set(kept.bodies) == {one.id for life in lives for one in life.told}
        reached = await cursors.get("events")
        assert reached is not None
        assert reached > START + OVERLAP.total_seconds()
        assert await poll.run() == 0
        await api.close()


async def test_a_look_that_began_later_leaves_the_cursor(database_url: str, stripe: StripeStandIn) -> None:
    """Rule: an operator's `--since` must not make the next poll step over what lies before it."""
    early, late = Life(at=START), Life(at=START + 86_400)
    for life in (early, late):
        stripe.tell(life.told[0].body)
    async with told_billing(database_url) as billing:
        cursors, kept = Cursors(billing.pool), Kept()
        await cursors.advance("events", START)
        api = asking(stripe)
        poll = polling(api, kept, cursors)
        assert await poll.run(START + 3600) == 1
        assert await cursors.get("events") == START
        assert await poll.run() == 1
        await api.close()


async def test_a_connected_accounts_events_are_found_too(
    database_url: str, stripe: StripeStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: each listed account has a cursor of its own; its events are stored as its webhooks would bring
    them; one that does not answer holds up no other."""
    own, theirs = Life(at=START), Life(at=START)
    stripe.tell(own.told[0].body)
    webhook = snapshot("customer.subscription.created", theirs.now, second=START, account="acct_1")
    stripe.tell(webhook)
    stripe.tell(snapshot("customer.subscription.created", own.now, second=START, account="acct_of_nobody"))
    async with told_billing(database_url) as billing:
        cursors, kept = Cursors(billing.pool), Kept()
        for name in ("events", "events@acct_0", "events@acct_1"):
            await cursors.advance(name, START)
        api = asking(stripe)
        poll = polling(api, kept, cursors, accounts=("acct_0", "acct_1"))
        real = StripeApi._get

        async def gone(asked: StripeApi, path: str, params: Any) -> Any:
            if asked._account == "acct_0":
                raise TransientError("revoked")
            return await real(asked, path, params)

        monkeypatch.setattr(StripeApi, "_get", gone)
        with pytest.raises(TransientError, match="revoked"):
            await poll.run()
        assert len(kept.bodies) == 2
        assert await cursors.get("events@acct_0") == START
        assert (await cursors.get("events@acct_1") or 0) > START
        found = {event.id: event for event in map(events.read, kept.bodies.values())}
        asked = events.read(webhook)
        assert found.pop(asked.id) == asked
        assert [event.account for event in found.values()] == [None]
        await api.close()


async def test_what_stripe_answers_decides_who_tries_again(stripe: StripeStandIn) -> None:
    """Rule: a missing object is an answer; a refused key, a limit and a failure are for later."""
    life = Life(at=START)
    stripe.put(life.now)
    api = asking(stripe)
    assert (await api.subscription(life.name)).state.status == "incomplete"
    with pytest.raises(MissingObjectError):
        await api.subscription("sub_nobody")
    stripe.rate_limited = 1
    with pytest.raises(TransientError):
        await api.subscription(life.name)
    stripe.is_down = True
    with pytest.raises(TransientError):
        await api.subscription(life.name)
    stripe.is_down = False
    await api.close()
    stranger = asking(stripe, key="rk_test_wrong")
    with pytest.raises(TransientError):
        await stranger.subscription(life.name)
    await stranger.close()
