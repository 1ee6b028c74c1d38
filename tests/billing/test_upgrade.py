"""A ledger of the version before, as that version wrote it, goes on: nothing it told is told again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from kgents_billing.handlers.process import NeedsKeyError
from kgents_billing.model.decision import Outcome
from kgents_billing.model.entries import sums
from kgents_billing.model.ownership import Kind, history
from kgents_billing.sinks.store.assign import Assignments
from kgents_billing.sinks.store.entries import Entries
from kgents_devstack.stripe import START, snapshot

from .test_facts_of_every_type import dispute, invoice, invoice_payment, refund, session
from .told import KnownStripe, ToldBilling, told_billing

BEFORE = json.loads((Path(__file__).parent / "ledger_of_the_first_schema.json").read_text())
FIRST = "0001_billing.sql"


def restore(url: str) -> None:
    """The first schema, and what the version before had written: sixteen events, fourteen facts."""
    text = (resources.files("kgents_billing.schema") / FIRST).read_text()
    with psycopg.connect(url) as connection:
        connection.execute("create schema billing")
        connection.execute(text.encode())
        connection.execute(
            "create table billing.migration"
            " (name text primary key, digest text not null, at timestamptz not null default now())"
        )
        connection.execute(
            "insert into billing.migration (name, digest) values (%s, %s)",
            [FIRST, hashlib.sha256(text.encode()).hexdigest()],
        )
        for table, rows in BEFORE["tables"].items():
            connection.execute(
                sql.SQL(
                    "insert into {0} overriding system value"
                    " select * from jsonb_populate_recordset(null::{0}, %s::jsonb)"
                ).format(sql.Identifier("billing", table)),
                [json.dumps(rows)],
            )


@asynccontextmanager
async def upgraded(url: str) -> AsyncIterator[ToldBilling]:
    restore(url)
    async with told_billing(url) as billing:
        yield billing


def bodies() -> list[bytes]:
    return [json.dumps(event).encode() for event in BEFORE["events"]]


async def test_nothing_is_told_twice_after_the_upgrade(database_url: str) -> None:
    """Rule: also where a fact has another key or type by now, and every event is handled again."""
    async with upgraded(database_url) as billing:
        before = await billing.facts()
        assert len(before) == 14
        for body in bodies():
            assert (await billing.take(body)).outcome is Outcome.DUPLICATE
            assert (await billing.take(body, again=True)).facts == 0
        assert await billing.facts() == before


async def test_what_comes_later_is_told_as_it_would_have_been(database_url: str) -> None:
    """Rule: entries made of old facts are entries: the next state of each tells what it adds."""
    later: list[tuple[str, dict[str, Any], set[str]]] = [
        ("checkout.session.async_payment_succeeded", session(), {"pay.ok:cs_1"}),
        ("invoice.payment_failed", invoice(id="in_3", amount_paid=0), {f"pay.fail:in_3:2:{START + 99}"}),
        ("refund.updated", refund(status="succeeded"), {"refund:re_1:succeeded"}),
        ("refund.failed", refund(id="re_2", status="failed"), {"refund:re_2:failed", "refund:re_2:reversed"}),
        ("charge.dispute.funds_reinstated", dispute(status="won"), set()),
    ]
    async with upgraded(database_url) as billing:
        for kind, thing, keys in later:
            known = set(await billing.facts())
            await billing.take(snapshot(kind, thing, second=START + 99))
            assert set(await billing.facts()) - known == keys
        async with billing.pool.connection() as connection:
            held = await (
                await connection.execute(
                    "select kind, id, state, in_balance from billing.entry order by 1, 2"
                )
            ).fetchall()
        assert held == [
            ("checkout", "cs_1", "paid", 500),
            ("checkout", "cs_2", "paid", 500),
            ("dispute", "dp_1/1", "reinstated", 0),
            ("invoice", "in_1", "paid", 1999),
            ("invoice", "in_2", "paid", 0),  # past Stripe
            ("refund", "re_1", "succeeded", -300),
            ("refund", "re_2", "failed", 0),
        ]


@pytest.mark.parametrize("has_key", [True, False])
async def test_a_checkout_of_before_and_its_later_invoice_are_one_payment(
    database_url: str, has_key: bool
) -> None:
    """Rule: the first version told a checkout also where it had an invoice: that invoice, paid after the
    upgrade, is told no second time; another over as much is; without a key an operator is asked."""
    restore(database_url)
    stripe = KnownStripe()
    stripe.objects["/v1/checkout/sessions/cs_2"] = (session(id="cs_2", invoice="in_of_cs"), START)
    once = {"currency": "eur", "amount_paid": 500, "parent": None, "metadata": {"tenant_id": "acme"}}

    def paid(name: str) -> bytes:
        return snapshot("invoice.paid", invoice(id=name, **once), second=START + 60)

    async with told_billing(database_url, stripe if has_key else None) as billing:
        before = await billing.facts()
        if not has_key:
            with pytest.raises(NeedsKeyError, match="only Stripe can tell"):
                await billing.take(paid("in_of_cs"))
            assert await billing.facts() == before
            return
        assert (await billing.take(paid("in_of_cs"))).facts == 0
        part = invoice_payment(invoice="in_of_cs", currency="eur", amount_paid=500)
        await billing.take(snapshot("invoice_payment.paid", part, second=START + 61))
        known = sums(await Entries(billing.pool).of_payment("in_of_cs"))
        assert [whole.balance for whole in known if whole.currency == "eur"] == [500]
        assert (await billing.take(paid("in_other"))).facts == 1
        assert set(await billing.facts()) - set(before) == {"inv.payment:inpay_1", "pay.ok:in_other"}


async def test_who_owned_what_is_known_after_the_upgrade(database_url: str) -> None:
    """Rule: a tenant of before is open without a key; a row of before is no difference to its object."""
    async with upgraded(database_url) as billing:
        stored = await billing.subscriptions.get("sub_1")
        assert stored is not None
        assert (stored.row.tenant, stored.row.state.tenant) == ("acme", None)
        billing.store._knows = lambda _: False
        moved = {**BEFORE["events"][3]["data"]["object"], "metadata": {"tenant_id": "globex"}}
        body = snapshot(
            "customer.subscription.updated", moved, second=START + 90,
            previous={"metadata": {"tenant_id": "acme"}}, name="evt_90",
        )  # fmt: skip
        assert (await billing.take(body)).outcome is Outcome.QUARANTINED
        billing.store._knows = None
        await billing.take(body)
        words = await Assignments(billing.pool).words(Kind.SUBSCRIPTION, "sub_1")
        assert [period.tenant for period in history(words, START + 100)] == ["acme", "globex"]
        known = {key: tenant for key, (tenant, _) in (await billing.facts()).items()}
        assert known["sub.started:sub_1:globex"] == "globex"
        assert "sub.started:sub_1:acme" not in known
