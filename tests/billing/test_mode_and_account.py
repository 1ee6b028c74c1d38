"""Test money is never live money, and a connected account is believed only where somebody listed it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from kgents_billing.handlers.process import Processor
from kgents_billing.metrics import Metrics
from kgents_billing.model import event as events
from kgents_billing.model.decision import Outcome, decide
from kgents_billing.model.known import Known, Options
from kgents_billing.settings import BillingSettings
from kgents_billing.sinks.stripe_api import StripeApi
from kgents_common.clock import SystemClock
from kgents_common.errors import ConfigurationError
from kgents_common.telemetry import new_registry
from kgents_devstack.stripe import START, Life, StripeStandIn, snapshot
from kgents_metering.model.event import Dead, Event, Message, classify_fact

from .lives import Billing
from .told import KnownStripe, told_billing

NEEDED = {
    "NATS_SERVERS": "nats://127.0.0.1:1",
    "DATABASE_URL": "postgresql://127.0.0.1/none",
    "KGENTS_KEYRING_FILE": "keys.json",
}


def settings(monkeypatch: pytest.MonkeyPatch, **environment: str) -> BillingSettings:
    monkeypatch.delenv("KGENTS_STRIPE_MODE", raising=False)
    for name, value in (NEEDED | environment).items():
        monkeypatch.setenv(name, value)
    return BillingSettings.from_environment()


def test_billing_refuses_to_start_without_a_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule: nobody guesses whether money is real; a key of the other mode is refused, too."""
    with pytest.raises(ConfigurationError, match="KGENTS_STRIPE_MODE"):
        settings(monkeypatch)
    with pytest.raises(ConfigurationError, match="is of test mode"):
        settings(monkeypatch, KGENTS_STRIPE_MODE="live", STRIPE_API_KEY="rk_test_1")
    assert settings(monkeypatch, KGENTS_STRIPE_MODE="live", STRIPE_API_KEY="rk_live_1").options().livemode


def test_accounts_are_listed_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule: off unless listed; one may be all of one tenant's."""
    found = settings(monkeypatch, KGENTS_STRIPE_MODE="test", KGENTS_STRIPE_ACCOUNTS="acct_1, acct_2=acme")
    assert found.accounts == {"acct_1": None, "acct_2": "acme"}
    with pytest.raises(ConfigurationError, match="KGENTS_STRIPE_ACCOUNTS"):
        settings(monkeypatch, KGENTS_STRIPE_MODE="test", KGENTS_STRIPE_ACCOUNTS="acme=acct_1")


def paid(**fields: Any) -> bytes:
    thing = {
        "id": "in_1", "object": "invoice", "customer": "cus_1", "amount_paid": 5, "currency": "usd",
        "metadata": {"tenant_id": "acme"},
    }  # fmt: skip
    return snapshot("invoice.paid", thing, second=START, **fields)


@pytest.mark.parametrize(
    ("options", "fields", "note"),
    [
        (Options(livemode=True), {}, "wrong_mode"),
        (Options(livemode=False), {"livemode": True}, "wrong_mode"),
        (Options(livemode=False), {"account": "acct_9"}, "foreign_account"),
        (Options(accounts={"acct_1": None}), {"account": "acct_9"}, "foreign_account"),
    ],
)
def test_what_is_not_ours_is_left_and_counted(options: Options, fields: dict[str, Any], note: str) -> None:
    """Rule: an event of the other mode, or of an account nobody listed, tells nothing."""
    decision = decide(events.read(paid(**fields)), Known(), options)
    assert (decision.outcome, decision.notes) == (Outcome.IGNORED, (note,))


def test_facts_say_their_mode_and_account() -> None:
    """Rule: nobody downstream has to know which system a fact came from."""
    billing = Billing(options=Options(accounts={"acct_1": "globex"}))
    billing.take(paid(account="acct_1"))
    ((tenant, body),) = billing.facts.values()
    fact = json.loads(body)
    assert (tenant, fact["source"]) == ("globex", "/stripe/acct_1")
    assert (fact["data"]["livemode"], fact["data"]["account"]) == (False, "acct_1")
    subscribed = Billing()
    for one in Life().wait(5).become("active").told:
        subscribed.take(one.body)
    assert {json.loads(b)["data"]["livemode"] for _, b in subscribed.facts.values()} == {False}


def fact(livemode: bool | None, *, ahead: timedelta) -> Message:
    """A fact as metering gets it."""
    now = datetime(2026, 11, 25, tzinfo=UTC)
    data = {"amount_minor": 5} | ({} if livemode is None else {"livemode": livemode})
    body = {
        "specversion": "1.0", "id": "pay.ok:in_1", "source": "/stripe/self", "type": "payment.success",
        "subject": "acme", "time": (now + ahead).isoformat(), "data": data,
    }  # fmt: skip
    return Message(
        "events.billing.acme.payment.success", {}, json.dumps(body).encode(), now, 1, now, "EVENTS"
    )


def test_a_test_fact_is_metered_as_a_test() -> None:
    """Rule: no meter of `billing.payment.success` counts it; a test clock's time makes no dead letter."""
    tested = classify_fact(fact(False, ahead=timedelta(days=400)))
    assert isinstance(tested, Event)
    assert (tested.type, tested.time) == ("billing.test.payment.success", tested.message.stored_at)
    for livemode in (True, None):  # None: told by the version before
        real = classify_fact(fact(livemode, ahead=timedelta()))
        assert isinstance(real, Event)
        assert real.type == "billing.payment.success"
        assert isinstance(classify_fact(fact(livemode, ahead=timedelta(days=400))), Dead)


async def test_an_account_is_asked_with_its_own_name(database_url: str) -> None:
    """Rule: the right header for each account; "not found" is never "known"."""
    life = Life(at=START).wait(5).become("active")
    cut = {**life.now, "items": {**life.now["items"], "has_more": True}}
    body = snapshot("customer.subscription.updated", cut, second=START + 5, account="acct_1")
    stripe = KnownStripe()
    async with told_billing(database_url, stripe) as billing:
        options = Options(accounts={"acct_1": None})
        billing.processor = Processor(billing.store, stripe, options=options, metrics=Metrics(new_registry()))
        await billing.take(body)
        assert stripe.accounts == ["acct_1"]
        stored = await billing.subscriptions.get(life.name)
        assert stored is not None
        assert (stored.account, stored.row.needs_refetch, stored.not_found) == ("acct_1", True, False)
        assert await billing.refetched()  # not found: unsure as before
        stored = await billing.subscriptions.get(life.name)
        assert stored is not None
        assert (stored.row.needs_refetch, stored.not_found) == (True, True)
        assert await billing.subscriptions.to_refetch(5) == []  # looked for again later
        assert stripe.accounts == ["acct_1", "acct_1"]


async def test_the_header_is_on_the_wire() -> None:
    """Rule: `Stripe-Account` where an account is asked for, and nowhere else."""
    with StripeStandIn() as stand_in:
        stand_in.put(Life(at=START).now | {"id": "sub_h"})
        api = StripeApi(stand_in.key, base_url=stand_in.url, clock=SystemClock(), per_second=100)
        await api.get("/v1/subscriptions/sub_h")
        await api.of("acct_7").get("/v1/subscriptions/sub_h")
        await api.close()
        assert stand_in.accounts == [None, "acct_7"]
