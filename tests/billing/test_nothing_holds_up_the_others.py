"""One event, letter or subscription that fails neither holds up the others nor disappears."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from kgents_billing.handlers.poll import Poll
from kgents_billing.handlers.process import Processor
from kgents_billing.handlers.rounds import Quarantine, Refetch
from kgents_billing.handlers.survey import Survey, Surveyed
from kgents_billing.metrics import Metrics
from kgents_billing.model.decision import Outcome
from kgents_billing.model.known import Fetched
from kgents_billing.model.projection import UnreadableObjectError, digest, project
from kgents_billing.sinks.store.cursors import Cursors
from kgents_billing.sinks.store.tenants import Tenants
from kgents_billing.sinks.stripe_api import Answer, Page
from kgents_common.clock import SystemClock
from kgents_common.errors import PermanentError, TransientError
from kgents_common.stripe_events import StripeEnvelope
from kgents_common.telemetry import new_registry
from kgents_devstack.stripe import START, Life, snapshot

from .told import KnownStripe, ToldBilling, told_billing

NOW = int(datetime.now(UTC).timestamp())


class Later(SystemClock):
    """A clock a day and an hour ahead."""

    def now(self) -> datetime:
        return super().now() + timedelta(hours=25)


def nobodys(name: str = "in_1") -> bytes:
    """A paid invoice whose tenant nobody knows."""
    thing = {"id": name, "object": "invoice", "customer": f"cus_{name}", "amount_paid": 5, "currency": "usd"}
    return snapshot("invoice.paid", thing, second=START)


async def make_due(billing: ToldBilling) -> None:
    async with billing.pool.connection() as connection:
        await connection.execute("update billing.quarantine set next_at = now() - interval '1 second'")


async def test_what_ended_by_another_way_waits_no_longer(database_url: str) -> None:
    """Rule: a quarantined event that was handled meanwhile leaves the quarantine."""
    life = Life(at=START)
    async with told_billing(database_url) as billing:
        await billing.take(life.told[0].body)
        async with billing.pool.connection() as connection:
            await connection.execute(
                "insert into billing.quarantine (event_id, type, subject, body, epoch, seq, reason)"
                " values (%s, 't', 's', %s, now(), 1, 'unmapped_tenant')",
                [life.told[0].id, life.told[0].body],
            )
        await Quarantine(billing.letters, billing.processor, SystemClock()).run()
        assert await billing.letters.counts() == (0, 0)


async def test_a_letter_replayed_in_vain_is_open_again(database_url: str) -> None:
    """Rule: nothing disappears (P3): replayed, still nobody's, a day later it is an operator's again."""
    async with told_billing(database_url) as billing:
        origin = billing.origin(nobodys())
        late = Quarantine(billing.letters, billing.processor, Later())
        await billing.processor.process(origin)
        await late.run()
        (letter,) = await billing.letters.find()
        assert (await billing.processor.process(origin, again=True)).outcome is Outcome.QUARANTINED
        await billing.letters.settle(letter.id, state="replayed")
        assert await billing.letters.counts() == (1, 0)
        await late.run()
        assert await billing.letters.counts() == (0, 1)
        (again,) = await billing.letters.find()
        assert (again.id, again.code) == (letter.id, "unmapped_tenant")


class Failing:
    """A processor that fails for some bodies."""

    def __init__(self, inner: Processor, failures: dict[bytes, Exception]) -> None:
        self._inner = inner
        self._failures = failures

    async def process(self, origin: Any, **options: Any) -> Any:
        if bytes(origin.body) in self._failures:
            raise self._failures[bytes(origin.body)]
        return await self._inner.process(origin, **options)


@pytest.mark.parametrize(
    "failure", [TransientError("no"), ValueError("a defect")], ids=["transient", "defect"]
)
async def test_a_quarantined_event_that_fails_holds_up_no_other(
    database_url: str, failure: Exception
) -> None:
    """Rule: each is tried by itself."""
    poison, life = nobodys(), Life(at=START, tenant=None)
    async with told_billing(database_url) as billing:
        await billing.take(poison)
        await billing.take(life.told[0].body)
        customer = {"id": life.now["customer"], "object": "customer", "metadata": {"tenant_id": "acme"}}
        await billing.take(snapshot("customer.updated", customer, second=START + 9))
        await make_due(billing)
        failing: Any = Failing(billing.processor, {poison: failure})
        await Quarantine(billing.letters, failing, SystemClock()).run()
        assert await billing.letters.counts() == (1, 0)
        assert life.name in await billing.states()


@pytest.mark.parametrize(
    "failure", [TransientError("no"), UnreadableObjectError("odd")], ids=["transient", "unreadable"]
)
async def test_a_subscription_that_cannot_be_fetched_holds_up_no_other(
    database_url: str, failure: Exception
) -> None:
    """Rule: what fails goes to the end of the row."""
    bad, good = Life(at=START), Life(at=START)
    async with told_billing(database_url) as billing:
        for life in (bad, good):
            await billing.take(life.told[0].body)
        async with billing.pool.connection() as connection:
            await connection.execute("update billing.subscription set needs_refetch = true")
            await connection.execute(
                "update billing.subscription set updated_at = updated_at - interval '1 hour' where id = %s",
                [bad.name],
            )

        class Stripe:
            def of(self, account: str | None) -> Stripe:
                del account
                return self

            async def subscription(self, name: str) -> Fetched:
                if name == bad.name:
                    raise failure
                return Fetched(project(good.now), START + 9)

        refetch = Refetch(Stripe(), billing.store, billing.subscriptions)  # type: ignore[arg-type]
        for _ in range(2):
            try:
                await refetch.run()
            except TransientError:
                continue
        (left,) = await billing.subscriptions.to_refetch(5)
        assert left.row.id == bad.name


class Listing:
    """Stripe's API, as far as the poll and the survey ask it."""

    def __init__(self, events: list[bytes] = (), subscriptions: list[dict[str, Any]] = ()) -> None:  # type: ignore[assignment]
        self.events = list(events)
        self.subscriptions = {thing["id"]: thing for thing in subscriptions}
        self.whole = dict(self.subscriptions)
        self.customers: dict[str, dict[str, str]] = {}

    def of(self, account: str | None) -> Listing:
        del account
        return self

    async def pages(self, path: str, params: Any) -> AsyncIterator[Page]:
        if path == "/v1/events":
            since = params["created"]["gte"]
            found = [body for body in self.events if msgspec.json.decode(body)["created"] >= since]
        else:
            found = [msgspec.json.encode(thing) for thing in self.subscriptions.values()]
        yield Page(found, NOW)

    async def whole_subscription(self, name: str) -> Answer:
        return Answer(self.whole[name], "", NOW)

    async def customer_metadata(self, name: str) -> dict[str, str]:
        return self.customers.get(name, {})


class Kept:
    """Stands for EVENTS; some events it can never store."""

    def __init__(self, never: str = "") -> None:
        self.ids: list[str] = []
        self._never = never

    async def append(self, event: StripeEnvelope, body: bytes, *, received_at: datetime) -> bool:
        del body, received_at
        if event.id == self._never:
            raise PermanentError("more than the server takes")
        if event.id in self.ids:
            return False
        self.ids.append(event.id)
        return True


def polling(billing: ToldBilling, stripe: Listing, kept: Kept) -> Poll:
    made: Any = Poll
    return made(
        stripe, kept, Cursors(billing.pool), first_days=30, metrics=Metrics(new_registry()),
        clock=SystemClock(),
    )  # fmt: skip


async def test_an_event_no_stream_takes_does_not_stop_the_poll(database_url: str) -> None:
    """Rule: it is told an operator; the others come, and the cursor moves on."""
    lives = [Life(at=NOW - 60) for _ in range(3)]
    stripe = Listing([life.told[0].body for life in lives])
    async with told_billing(database_url) as billing:
        kept = Kept(never=lives[1].told[0].id)
        assert await polling(billing, stripe, kept).run() == 2
        assert await Cursors(billing.pool).get("events") == NOW


async def test_an_event_listed_late_in_a_second_already_seen_is_fetched(database_url: str) -> None:
    """Rule: a poll that goes on at `created > cursor` never sees it; an overlap does."""
    first, late = Life(at=NOW), Life(at=NOW)
    stripe = Listing([first.told[0].body])
    async with told_billing(database_url) as billing:
        kept = Kept()
        poll = polling(billing, stripe, kept)
        assert await poll.run() == 1
        stripe.events.append(late.told[0].body)
        assert await poll.run() == 1
        assert await poll.run() == 0
        assert kept.ids == [first.told[0].id, late.told[0].id]


async def survey(billing: ToldBilling, stripe: Listing, *, caught_up: bool = True) -> int:
    """How many were healed."""
    return (await surveyed(billing, stripe, caught_up=caught_up)).healed


async def surveyed(billing: ToldBilling, stripe: Listing, *, caught_up: bool = True) -> Surveyed:
    async def is_caught_up() -> bool:
        return caught_up

    made: Any = Survey
    found: Surveyed = await made(
        stripe, billing.store, billing.subscriptions, polling(billing, stripe, Kept()),
        Metrics(new_registry()), Tenants(billing.pool, None), is_caught_up=is_caught_up,
    ).run()  # fmt: skip
    return found


async def test_a_survey_knows_a_tenant_by_its_customer_and_names_what_it_left(database_url: str) -> None:
    """Rule: whose a subscription is may be on its customer, here or at Stripe; nobody's is said, not "0"."""
    known, asked, nobodys = (Life(at=START, tenant=None).wait(5).become("active") for _ in range(3))
    customer = {"id": known.now["customer"], "object": "customer", "metadata": {"tenant_id": "acme"}}
    async with told_billing(database_url) as billing:
        await billing.take(snapshot("customer.created", customer, second=START))
        stripe = Listing(subscriptions=[known.now, asked.now, nobodys.now])
        stripe.customers[asked.now["customer"]] = {"tenant_id": "globex"}
        found = await surveyed(billing, stripe)
        assert (found.healed, found.unmapped) == (2, {nobodys.name: "unmapped_tenant"})
        told = {key: tenant for key, (tenant, _) in (await billing.facts()).items()}
        assert told == {
            f"sub.started:{known.name}:acme": "acme",
            f"sub.started:{asked.name}:globex": "globex",
        }


async def test_a_survey_tells_of_a_move_that_no_event_told(database_url: str) -> None:
    """Rule: a tenant that changed in metadata while events were lost is healed, and both are told."""
    life = Life(at=START).wait(5).become("active")
    async with told_billing(database_url) as billing:
        for one in life.told:
            await billing.take(one.body)
        stripe = Listing(subscriptions=[{**life.now, "metadata": {"tenant_id": "globex"}}])
        assert await survey(billing, stripe) == 1
        assert await survey(billing, stripe) == 0
        moved = {
            key.rpartition(":")[2]: t for key, (t, _) in (await billing.facts()).items() if "moved" in key
        }
        assert moved == {"out": "acme", "in": "globex"}


async def test_a_survey_waits_for_events_that_are_stored_and_not_handled(database_url: str) -> None:
    """Rule: an event on its way tells the change itself: healed before, it would be told twice."""
    life = Life(at=START).wait(5).become("active").wait(5).change(cancel_at_period_end=True)
    async with told_billing(database_url) as billing:
        for one in life.told[:2]:
            await billing.take(one.body)
        stripe = Listing(subscriptions=[life.now])
        with pytest.raises(TransientError):
            await survey(billing, stripe, caught_up=False)
        await billing.take(life.told[2].body)
        assert await survey(billing, stripe) == 0
        updated = [key for key in await billing.facts() if key.startswith("sub.updated")]
        assert len(updated) == 1


async def test_a_survey_leaves_what_changes_while_it_looks(database_url: str) -> None:
    """Rule: only a difference that stood still is believed to have no event."""
    life = Life(at=START).wait(5).become("active")
    async with told_billing(database_url) as billing:
        for one in life.told:
            await billing.take(one.body)
        stripe = Listing(subscriptions=[{**life.now, "status": "past_due"}])
        stripe.whole[life.name] = {**life.now, "status": "unpaid"}
        assert await survey(billing, stripe) == 0
        stripe.whole[life.name] = {**life.now, "status": "past_due"}
        assert await survey(billing, stripe) == 1
        assert (await billing.states())[life.name] == digest(project(stripe.whole[life.name]))


async def test_a_survey_asked_for_while_one_ran_is_made(database_url: str) -> None:
    """Rule: Stripe's word that it failed to make events is not lost to a survey that ends just then."""
    async with told_billing(database_url) as billing:
        cursors = Cursors(billing.pool)
        await cursors.replace("subscriptions", None, 100)
        async with billing.pool.connection() as connection:
            await connection.execute("update billing.cursor set second = 0 where name = 'subscriptions'")
        await cursors.replace("subscriptions", 100, 200)
        assert await cursors.get("subscriptions") == 0
        await cursors.replace("subscriptions", 0, 300)
        assert await cursors.get("subscriptions") == 300


async def test_a_list_that_stripe_cut_is_asked_for_whole(database_url: str) -> None:
    """Rule: an event holds the first items only; the row has them all, and says so while it has not."""
    life = Life(at=START).wait(5).become("active")
    whole = {**life.now, "items": {"data": [
        {"id": f"si_{n}", "price": {"id": f"price_{n}"}, "quantity": 1} for n in range(12)
    ]}}  # fmt: skip
    cut = {**whole, "items": {"data": whole["items"]["data"][:10], "has_more": True}}
    body = snapshot("customer.subscription.updated", cut, second=START + 5, previous={"status": "incomplete"})
    async with told_billing(database_url) as billing:
        await billing.take(body)
        (stored,) = await billing.subscriptions.to_refetch(5)
        assert len(stored.row.state.items) == 10
        billing.processor._stripe = KnownStripe(lambda _: (whole, START + 9))
        await billing.take(body, again=True)
        found = await billing.subscriptions.get(life.name)
        assert found is not None
        assert len(found.row.state.items) == 12
        assert not found.row.needs_refetch
        assert list(await billing.facts()) == [f"sub.started:{life.name}:acme"]


async def test_which_events_were_applied_is_forgotten_in_the_end(database_url: str) -> None:
    """Rule: no table of events grows for ever; facts' keys stay and stand behind it."""
    life = Life(at=START).wait(5).become("active")
    async with told_billing(database_url) as billing:
        for one in life.told:
            await billing.take(one.body)
        before = await billing.facts()
        async with billing.pool.connection() as connection:
            await connection.execute("update billing.applied set at = at - interval '91 days'")
        assert await Cursors(billing.pool).forget() == 2
        for one in life.told:
            await billing.take(one.body)
        assert await billing.facts() == before
