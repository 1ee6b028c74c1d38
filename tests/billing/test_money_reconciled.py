"""Money held against Stripe: a first look tells what was before, a day's comparison names what differs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from kgents_billing.handlers.backfill import Backfill
from kgents_billing.handlers.commands import run_command
from kgents_billing.handlers.money_check import DAY_SECONDS, MoneyCheck
from kgents_billing.handlers.process import Processor
from kgents_billing.handlers.reads import EXCEPTION_HANDLERS, Reads, routes
from kgents_billing.handlers.survey import Surveyed
from kgents_billing.metrics import Metrics
from kgents_billing.model.known import Options
from kgents_billing.sinks.store.cursors import Backfills
from kgents_billing.sinks.store.entries import Entries
from kgents_billing.sinks.stripe_api import StripeApi
from kgents_common import keyring
from kgents_common.clock import SystemClock
from kgents_common.errors import TransientError
from kgents_common.telemetry import new_registry
from kgents_devstack.stripe import START, Life, StripeStandIn, objects, snapshot

from .told import ToldBilling, told_billing

DAY = START // DAY_SECONDS * DAY_SECONDS
OPTIONS = Options(livemode=False)


@pytest.fixture
def stripe() -> Iterator[StripeStandIn]:
    with StripeStandIn() as stand_in:
        yield stand_in


def happened(stripe: StripeStandIn) -> Life:
    """A day of money: paid in parts, given back, sent back, disputed and won, credited, written off."""
    life = stripe.subscribe(at=DAY + 60, priced=objects.price(amount=10_000), with_finalized=True)
    life.wait(60).pay_part(4000).wait(60).pay().wait(60).refund(700).wait(60).refund(300, "pending")
    life.wait(60).refund_ends("failed").wait(60).credit(100).wait(60).dispute().wait(60).win_dispute()
    return life


def asking(stripe: StripeStandIn) -> StripeApi:
    return StripeApi(stripe.key, base_url=stripe.url, clock=SystemClock(), per_second=100)


def with_stripe(billing: ToldBilling, api: StripeApi) -> Processor:
    return Processor(billing.store, api, options=OPTIONS, metrics=Metrics(new_registry()))


class NoSurvey:
    async def run(self) -> Surveyed:
        return Surveyed()


async def test_a_days_money_is_held_against_stripe(database_url: str, stripe: StripeStandIn) -> None:
    """Rule: objects and balance agree with entries to the minor unit; each difference has a name, and what an
    object tells is repaired."""
    life = happened(stripe)
    stray = objects.charge("ch_stray", payer="cus_1", amount=55, at=DAY + 5)
    api = asking(stripe)
    async with told_billing(database_url) as billing:
        billing.processor = processor = with_stripe(billing, api)
        check = MoneyCheck(api, Entries(billing.pool), processor, OPTIONS)
        for one in life.told:
            if one.type != "refund.failed":
                await billing.take(one.body)
        first = await check.run(DAY, repairs=False)
        assert [line for line in first.differences if "refund" in line] != []
        assert not first.agrees
        repaired = await check.run(DAY, repairs=True)
        assert (len(repaired.repaired), repaired.differences) == (1, [])
        assert repaired.agrees
        assert repaired.balance == {"usd": 10_000 - 700}
        facts = await billing.facts()
        assert [key for key in facts if key.endswith(":failed")] != []
        # A payment that belongs to no invoice and no checkout is in the balance and in no entry.
        stripe.put(stray)
        stripe.put(objects.balance_transaction("txn_stray", "ch_stray", "charge", 55, at=DAY + 5))
        last = await check.run(DAY, repairs=True)
        assert last.unknown == ["ch_stray: 55 usd (charge) is in no entry"]
        assert (last.balance["usd"] - last.entries["usd"], last.agrees) == (55, False)
        # In a balance of another currency, a movement is compared in the one that was paid in.
        assert life.charge is not None
        charged = {**life.charge, "id": "ch_eur", "currency": "usd", "amount": 55, "payment_intent": None}
        stripe.put(charged)
        eur = objects.balance_transaction("txn_eur", "ch_eur", "charge", 60, currency="eur", at=DAY + 5)
        stripe.put({**eur, "exchange_rate": 1.09})
        in_eur = await check.run(DAY, repairs=False)
        assert (in_eur.balance["eur"], in_eur.balance["usd"] - last.balance["usd"]) == (0, 55)
        # Nothing of that day is another day's.
        assert (await check.run(DAY - DAY_SECONDS, repairs=True)).agrees
        assert await billing.facts() == facts
    await api.close()


async def test_a_tenant_sees_its_own_entries(
    database_url: str, stripe: StripeStandIn, tmp_path: Path
) -> None:
    """Rule: what moved, with every state, by the tenant's own key; of another tenant nothing (P8)."""
    life = happened(stripe)
    keys = {}
    records = []
    for tenant in ("acme", "globex"):
        keys[tenant], record = keyring.mint(tenant, keyring.TENANT_SCOPES)
        records.append(record)
    keyring.write(tmp_path / "keys.json", records)
    async with told_billing(database_url) as billing:
        for one in life.told:
            await billing.take(one.body)
        reads = Reads(
            billing.subscriptions, Entries(billing.pool), keyring.Keyring(tmp_path / "keys.json"),
            SystemClock(), None, livemode=False,
        )  # fmt: skip
        app = Starlette(routes=routes(reads), exception_handlers=EXCEPTION_HANDLERS)

        async def asked(tenant: str, query: str = "") -> httpx.Response:
            async with httpx.AsyncClient(
                transport=httpx.ASGITransport(app), base_url="http://billing"
            ) as client:
                headers = {"x-api-key": keys.get(tenant, "")}
                return await client.get(f"/v1/billing/entries{query}", headers=headers)

        mine = (await asked("acme")).json()
        assert sum(entry["in_balance"] for entry in mine["entries"] if entry["kind"] != "invoice") == 9300
        (failed,) = [entry for entry in mine["entries"] if entry["state"] == "failed"]
        assert {state: mark["amount"] for state, mark in failed["seen"].items()} == {
            "pending": -300,
            "failed": -300,
        }
        assert len((await asked("acme", "?limit=2")).json()["entries"]) == 2
        assert (await asked("globex")).json()["entries"] == []
        assert [(await asked("acme", q)).status_code for q in ("?limit=0", "?limit=x")] == [400, 400]
        assert (await asked("nobody")).status_code == 401


async def test_a_first_look_tells_what_the_events_would_have(
    database_url: str, stripe: StripeStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: a backfill may be interrupted and goes on; what it left it names; events that come afterwards
    tell nothing of it twice."""
    monkeypatch.setattr("kgents_billing.sinks.stripe_api.PAGE", 1)
    life = happened(stripe)
    nobodys = objects.checkout_session("cs_nobody", payer="cus_nobody", at=DAY)
    stripe.put(nobodys)
    api = asking(stripe)
    said: list[str] = []
    async with told_billing(database_url) as billing:
        survey: Any = NoSurvey()
        progress = Backfills(billing.pool)
        # Whose things are is on the subscription, which the survey brings first.
        for one in life.told:
            if one.type.startswith("customer."):
                await billing.take(one.body)
        backfill = Backfill(api, survey, with_stripe(billing, api), progress, OPTIONS, say=said.append)
        real = api._get

        async def dies(path: str, params: Any) -> Any:
            if path == "/v1/refunds" and "starting_after" in params:
                raise TransientError("gone")
            return await real(path, params)

        monkeypatch.setattr(api, "_get", dies)
        with pytest.raises(TransientError):
            await backfill.run(DAY)
        monkeypatch.setattr(api, "_get", real)
        done = await backfill.run(DAY)
        assert "invoice: done before" in said
        assert done.skipped == []
        assert [line for line in said if "1 left" in line] != []
        held = await MoneyCheck(api, Entries(billing.pool), with_stripe(billing, api), OPTIONS).run(
            DAY, repairs=False
        )
        assert [line for line in held.differences if "cs_nobody" not in line] == []
        assert held.balance == held.entries == {"usd": 9300}
        before = await billing.facts()
        for one in life.told:
            await billing.take(one.body)
        moved = {key for key, (_, body) in (await billing.facts()).items() if b"moves_minor" in body}
        assert moved == {key for key, (_, body) in before.items() if b"moves_minor" in body}
        again = await backfill.run(DAY)
        assert (again.facts, sum(again.seen.values())) == (0, 0)
    await api.close()


def test_the_operator_sees_it_whole(
    database_url: str,
    stripe: StripeStandIn,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Rule: state, owners, entries, facts and why; 1 where nothing is known or money differs."""
    _, record = keyring.mint("acme", keyring.TENANT_SCOPES)
    keyring.write(tmp_path / "keys.json", [record])
    for name, value in {
        "NATS_SERVERS": "nats://127.0.0.1:1", "DATABASE_URL": database_url, "KGENTS_STRIPE_MODE": "test",
        "KGENTS_KEYRING_FILE": str(tmp_path / "keys.json"), "STRIPE_API_KEY": stripe.key,
        "STRIPE_API_BASE": stripe.url, "KGENTS_STRIPE_PER_SECOND": "100",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    life = happened(stripe)
    moved = {**life.now, "metadata": {"tenant_id": "acmee"}}

    async def fill() -> None:
        async with told_billing(database_url) as billing:
            for one in life.told:
                await billing.take(one.body)
            billing.store._knows = "acme".__eq__
            await billing.take(
                snapshot("customer.subscription.updated", moved, second=DAY + 9000, previous={})
            )

    asyncio.run(fill())

    def ran(*arguments: str, code: int = 0) -> str:
        assert run_command(list(arguments)) == code
        return capsys.readouterr().out

    day = f"{datetime.fromtimestamp(DAY, UTC):%Y-%m-%d}"
    whole = ran("show", "subscription", life.name)
    assert "of acme" in whole
    assert "access suspended: period_over" in whole
    assert f"sub.started:{life.name}:acme" in whole
    payment = ran("show", "invoice", life.invoice["id"])
    assert "Stripe's balance holds +9300 usd of it, outside +0" in payment
    assert payment.count("invoice_payment ") == 2
    assert life.charge is not None
    assert ran("show", "payment", life.charge["payment_intent"]).startswith(payment.partition("facts")[0])
    assert "access suspended: period_over" in ran("show", "tenant", "acme")
    ran("show", "invoice", "in_nobody", code=1)
    # Every event, in the order Stripe made them, and what waits.
    heard = [line.split()[3] for line in whole.partition("\nevents\n")[2].splitlines()]
    of_it = [one.type for one in life.told if f'"{life.name}"' in one.body.decode()]
    assert heard == [*of_it, "customer.subscription.updated"]
    assert "waits: unknown_tenant" in whole.splitlines()[-1]
    paid = [line.split()[3] for line in payment.partition("\nevents\n")[2].splitlines()]
    assert {"invoice.paid", "invoice_payment.paid", "refund.failed", "charge.dispute.closed"} & set(paid) >= {
        "invoice.paid",
        "invoice_payment.paid",
        "refund.failed",
    }
    assert "acmee" in ran("tenants", "unknown")
    assert "wait no longer" in ran("assign", "subscription", life.name, "acme")
    assert "acme" in ran("owner", "subscription", life.name)
    assert "difference +0" in ran("reconcile", "--money", "--day", day)
    assert json.loads(life.told[0].body)["livemode"] is False
    stripe.put(objects.balance_transaction("txn_x", "re_x", "refund", -5, at=DAY + 9))
    assert "differs   re_x: -5 usd (refund) is in no entry" in ran(
        "reconcile", "--money", "--day", day, code=1
    )
