"""A connected account that took its access back is told, and left; our own and the others go on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from kgents_billing.handlers.backfill import Backfill
from kgents_billing.handlers.defects import code_of
from kgents_billing.handlers.money_check import MoneyCheck
from kgents_billing.handlers.poll import Poll
from kgents_billing.handlers.process import Processor
from kgents_billing.handlers.rounds import Refetch
from kgents_billing.handlers.survey import Survey
from kgents_billing.metrics import Metrics
from kgents_billing.model.known import Options
from kgents_billing.sinks.store.cursors import Backfills, Cursors
from kgents_billing.sinks.store.entries import Entries
from kgents_billing.sinks.store.tenants import Tenants
from kgents_billing.sinks.stripe_api import AccountRefusedError, StripeApi
from kgents_common.clock import SystemClock
from kgents_common.errors import TransientError
from kgents_common.resilience import CircuitState
from kgents_common.telemetry import new_registry
from kgents_devstack.stripe import StripeStandIn

from .lives import START, Life, snapshot
from .test_poll import Kept
from .told import ToldBilling, told_billing

REVOKED, OTHER = "acct_revoked", "acct_other"
OPTIONS = Options(accounts={REVOKED: None, OTHER: None}, livemode=False)


@pytest.fixture
def stripe() -> Iterator[StripeStandIn]:
    with StripeStandIn() as stand_in:
        stand_in.revoked.add(REVOKED)
        yield stand_in


class Asking:
    """All that goes over the accounts, with one API."""

    def __init__(self, billing: ToldBilling, stripe: StripeStandIn) -> None:
        self.refused: list[str] = []
        self.api = StripeApi(
            stripe.key,
            base_url=stripe.url,
            clock=SystemClock(),
            per_second=100,
            on_refused=self.refused.append,
        )
        self.kept, self.cursors = Kept(), Cursors(billing.pool)
        self.metrics = Metrics(new_registry())
        made: Any = Poll
        self.poll = made(
            self.api, self.kept, self.cursors, first_days=30, metrics=self.metrics, clock=SystemClock(),
            accounts=tuple(OPTIONS.accounts),
        )  # fmt: skip

        async def yes() -> bool:
            return True

        self.survey = Survey(
            self.api, billing.store, billing.subscriptions, self.poll, self.metrics,
            Tenants(billing.pool, None), is_caught_up=yes, accounts=tuple(OPTIONS.accounts),
        )  # fmt: skip
        self.processor = Processor(billing.store, self.api, options=OPTIONS, metrics=self.metrics)
        self.check = MoneyCheck(self.api, Entries(billing.pool), self.processor, OPTIONS)
        self.backfill = Backfill(self.api, self.survey, self.processor, Backfills(billing.pool), OPTIONS)


@pytest.fixture
async def asking(database_url: str, stripe: StripeStandIn) -> AsyncIterator[tuple[Asking, ToldBilling]]:
    async with told_billing(database_url) as billing:
        made = Asking(billing, stripe)
        yield made, billing
        await made.api.close()


async def test_the_poll_goes_on_and_comes_back_to_it(
    asking: tuple[Asking, ToldBilling], stripe: StripeStandIn
) -> None:
    """Rule: the look is a whole one without it; its cursor stays, so that nothing is missed once it is back;
    it is said once, and counted each time."""
    own, theirs = Life(at=START), Life(at=START)
    stripe.tell(own.told[0].body)
    stripe.tell(snapshot("customer.subscription.created", theirs.now, second=START, account=REVOKED))
    made, _ = asking
    for name in ("events", f"events@{REVOKED}", f"events@{OTHER}"):
        await made.cursors.advance(name, START)
    structlog.reset_defaults()
    with capture_logs() as said:
        assert [await made.poll.run() for _ in range(12)] == [1] + [0] * 11
    assert [line["event"] for line in said if "account" in line] == ["stripe.account_refused"]
    assert made.refused == [REVOKED] * 12
    assert made.api.refused == [REVOKED]
    assert made.api.breaker.state is CircuitState.CLOSED  # Stripe answered
    assert made.metrics.polled_at._value.get() > START
    assert await made.cursors.get(f"events@{REVOKED}") == START
    assert (await made.cursors.get(f"events@{OTHER}") or 0) > START
    assert len([event async for event in made.poll.listed(START)]) == 1
    stripe.revoked.clear()
    with capture_logs() as said:
        assert await made.poll.run() == 1
    assert [line["event"] for line in said if "account" in line] == ["stripe.account_admitted"]
    assert made.api.refused == []


async def test_survey_backfill_and_money_go_on(
    asking: tuple[Asking, ToldBilling], stripe: StripeStandIn
) -> None:
    """Rule: the others' are healed, brought and compared; a comparison without it does not agree."""
    life = Life(at=START).wait(5).become("active")
    stripe.put(life.now)
    made, billing = asking
    assert (await made.survey.run()).healed == 1
    assert await billing.subscriptions.get(life.name) is not None
    brought = await made.backfill.run(START)
    assert [line for line in brought.skipped if REVOKED in line] != []
    report = await made.check.run(START, repairs=False)
    assert report.refused == [f"stripe: no access to account {REVOKED}"]
    assert not report.agrees
    stripe.revoked.clear()
    assert (await made.backfill.run(START)).skipped == []
    assert (await made.check.run(START, repairs=False)).agrees


async def test_what_is_wanted_of_it_waits_without_being_asked_for_all_the_time(
    asking: tuple[Asking, ToldBilling], stripe: StripeStandIn
) -> None:
    """Rule: a subscription of it waits for an hour, as one that Stripe does not find; an event that says only
    what to ask for is set aside, with a code of its own."""
    life = Life(at=START)
    made, billing = asking
    await billing.take(life.told[0].body)
    async with billing.pool.connection() as connection:
        await connection.execute(
            "update billing.subscription set needs_refetch = true, account = %s", [REVOKED]
        )
    refetch = Refetch(made.api, billing.store, billing.subscriptions)
    assert await refetch.run() is False
    assert await refetch.run() is False
    assert made.refused == [REVOKED]
    with pytest.raises(AccountRefusedError) as refused:
        await made.api.of(REVOKED).event("evt_1")
    assert code_of(refused.value) == "account_refused"


async def test_an_account_that_does_not_answer_does_not_keep_a_survey_from_the_others(
    asking: tuple[Asking, ToldBilling], stripe: StripeStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: whatever is the matter with one, the others are healed; then it is said."""
    life = Life(at=START).wait(5).become("active")
    stripe.put(life.now)
    made, billing = asking
    real = StripeApi._get

    async def fails(asked: StripeApi, path: str, params: Any) -> Any:
        if asked._account == OTHER:
            raise TransientError("not now")
        return await real(asked, path, params)

    monkeypatch.setattr(StripeApi, "_get", fails)
    with pytest.raises(TransientError, match="not now"):
        await made.survey.run()
    assert await billing.subscriptions.get(life.name) is not None
