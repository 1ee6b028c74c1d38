"""What moved money is an entry with its sign and state; facts follow entries, and sum to what came in."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterable
from typing import Any

import pytest

from kgents_billing.handlers.defects import where
from kgents_billing.model import event as events
from kgents_billing.model.amounts import MalformedAmountError
from kgents_billing.model.decision import Outcome
from kgents_billing.model.entries import EntryKind, sums
from kgents_billing.model.event import MalformedEventError
from kgents_billing.model.known import Options
from kgents_common import stripe_events
from kgents_devstack.stripe import START, Life, objects, snapshot

from .lives import Billing, Told
from .test_facts_of_every_type import CHARGE, TENANT, dispute, invoice, session

Happened = tuple[str, dict[str, Any], int]


def told(*happened: Happened, options: Options | None = None) -> Billing:
    """Every order of these events ends with the same entries and facts: those."""
    bodies = [snapshot(kind, thing, second=START + at) for kind, thing, at in happened]
    ends = [taken(order, options) for order in itertools.permutations(bodies)]
    for end in ends:
        assert end.facts == ends[0].facts
        assert end.entries == ends[0].entries
    return ends[0]


def taken(bodies: Iterable[bytes], options: Options | None = None) -> Billing:
    """Told in this order; what waits to learn who paid is tried again as long as that helps."""
    billing, left = Billing(options=options), list(bodies)
    for _ in range(len(left) + 1):
        left = [body for body in left if billing.take(body).outcome is Outcome.QUARANTINED]
    assert left == []
    assert billing.told_twice == 0
    return billing


def moves(billing: Billing) -> dict[str, int]:
    """What each fact that moves money adds to what was received."""
    found = {key: json.loads(body)["data"].get("moves_minor") for key, (_, body) in billing.facts.items()}
    return {key: moved for key, moved in found.items() if moved is not None}


def test_a_checkout_with_an_invoice_is_one_payment() -> None:
    """Rule: a payment has one `payment.success`, whatever names it has."""
    billing = told(
        ("checkout.session.completed", session(invoice="in_1", payment_intent="pi_1", amount_total=1999), 1),
        ("invoice.paid", invoice(), 2),
        ("invoice.payment_succeeded", invoice(status_transitions={"paid_at": START + 2}), 2),
    )
    assert moves(billing) == {"pay.ok:in_1": 1999}


def test_what_asks_for_action_is_no_failure_and_a_retry_by_hand_is_one() -> None:
    """Rule: `payment.failed` once for each attempt that failed, also where Stripe does not count it."""
    thing = {**invoice(attempt_count=1), "amount_paid": 0}
    billing = told(
        ("invoice.payment_failed", thing, 1),
        ("invoice.payment_action_required", thing, 1),
        ("invoice.payment_attempt_required", thing, 2),
        ("invoice.payment_failed", thing, 90),
        ("invoice.payment_failed", thing, 90),
    )
    kinds = sorted(json.loads(body)["type"] for _, body in billing.facts.values())
    assert kinds == ["payment.action_required"] * 2 + ["payment.failed"] * 2


def refund_of(name: str, amount: int, status: str) -> dict[str, Any]:
    return {**objects.refund(name, CHARGE, amount, status=status), "metadata": TENANT}


def test_a_refund_is_money_once_it_succeeded() -> None:
    """Rule: states are states: 2,000 that went back and 1,000 that did not are 2,000."""
    billing = told(
        ("refund.created", refund_of("re_1", 2000, "pending"), 1),
        ("refund.updated", refund_of("re_1", 2000, "succeeded"), 5),
        ("refund.created", refund_of("re_2", 1000, "pending"), 2),
        ("refund.failed", refund_of("re_2", 1000, "failed"), 9),
    )
    assert moves(billing) == {"refund:re_1:succeeded": -2000}
    balances = {entry.id: entry.in_balance for _, entry in billing.entries.values()}
    assert balances == {"re_1": -2000, "re_2": 0}


def test_a_refund_that_succeeded_and_failed_is_taken_back() -> None:
    """Rule: a bank may send a refund back: what it moved, another fact moves back; nothing is dropped."""
    billing = told(
        ("refund.created", refund_of("re_1", 700, "succeeded"), 1),
        ("refund.failed", refund_of("re_1", 700, "failed"), 9),
    )
    assert moves(billing) == {"refund:re_1:succeeded": -700, "refund:re_1:reversed": 700}
    assert "refund:re_1:failed" in billing.facts


def test_refunds_told_by_charges_may_reach_the_same_sum_twice() -> None:
    """Rule: 500 back, failed, 500 back again: the second is not lost, the failed one is taken back."""
    charge = {**objects.charge("ch_9", payer="cus_1"), "amount_refunded": 500, "metadata": TENANT}
    failed = {**refund_of("re_1", 500, "failed"), "charge": "ch_9"}
    billing = told(
        ("charge.refunded", charge, 1),
        ("charge.refund.updated", failed, 5),
        ("charge.refunded", charge, 9),
        ("refund.created", refund_of("re_1", 500, "succeeded"), 1),
        options=Options(refunds_from_charges=True),
    )
    assert sorted(moves(billing).values()) == [-500, -500, 500]


def test_a_checkout_that_fails_and_then_succeeds_tells_both() -> None:
    """Rule: a failure is no payment, and hides none."""
    billing = told(
        ("checkout.session.completed", session(payment_status="unpaid"), 1),
        ("checkout.session.async_payment_failed", session(payment_status="unpaid"), 2),
        ("checkout.session.async_payment_succeeded", session(), 9),
    )
    assert moves(billing) == {"pay.ok:cs_1": 500}
    assert "pay.fail:cs_1" in billing.facts


@pytest.mark.parametrize("gap", [0, 60])
def test_a_part_is_paid_and_the_rest_is_written_off(gap: int) -> None:
    """Rule: 4,000 of 10,000: paid 4,000, failed 6,000, written off 6,000."""
    life = Life(priced=objects.price(amount=10_000)).wait(gap).pay_part(4000).wait(gap).fail()
    life.wait(gap).write_off()
    wanted: Billing | None = None
    for order in itertools.permutations(life.told):
        billing = taken(one.body for one in order)
        wanted = wanted or billing
        assert billing.facts == wanted.facts
    assert wanted is not None
    said = {json.loads(body)["type"]: json.loads(body)["data"] for _, body in wanted.facts.values()}
    assert said["payment.failed"]["amount_minor"] == 6000
    assert said["invoice.marked_uncollectible"]["amount_minor"] == 6000
    assert said["invoice.payment_applied"]["amount_minor"] == 4000
    assert moves(wanted) == {f"pay.part:{life.invoice['id']}": 4000}
    life.wait(60).pay()
    late = taken(one.body for one in life.told)
    assert sum(moves(late).values()) == 10_000
    assert balance(late, life) == {"usd": 10_000}


def test_a_part_that_was_paid_of_a_void_invoice_is_received() -> None:
    """Rule: what was paid before nothing more was asked for is money; written off and then void, once."""
    void = {**invoice(amount_paid=700), "status": "void"}
    billing = told(("invoice.marked_uncollectible", void, 1), ("invoice.voided", void, 2))
    assert moves(billing) == {"pay.part:in_1": 700, "pay.part_void:in_1": 700, "pay.part_in_void:in_1": -700}
    assert moves(told(("invoice.voided", {**void, "amount_paid": 0}, 2))) == {}
    (entry,) = (entry for _, entry in told(("invoice.voided", void, 2)).entries.values())
    assert (entry.state, entry.in_balance) == ("voided", 700)


def test_a_dispute_is_in_the_currency_that_was_paid_in() -> None:
    """Rule: where the balance is kept in another currency, its amounts are not those of the payment."""
    moved = [
        objects.balance_transaction("txn_1", "dp_1", "adjustment", -650, currency="usd", at=START),
        objects.balance_transaction("txn_2", "dp_1", "adjustment", 640, currency="usd", at=START + 9),
    ]
    whole = dispute(balance_transactions=moved, amount=2000)
    billing = told(("charge.dispute.funds_withdrawn", {**whole, "balance_transactions": moved[:1]}, 1),
                   ("charge.dispute.funds_reinstated", whole, 9))  # fmt: skip
    assert moves(billing) == {"dispute:dp_1:funds_withdrawn": -2000, "dispute:dp_1:funds_reinstated": 2000}
    assert {entry.currency for _, entry in billing.entries.values()} == {"kwd"}


def test_what_is_paid_past_stripe_is_paid_and_not_in_its_balance() -> None:
    """Rule: current versions have a sum of it, older ones a flag; the fact says how much."""
    life = Life().wait(5).pay(outside=True)
    billing = taken(one.body for one in life.told)
    (fact,) = [json.loads(body)["data"] for key, (_, body) in billing.facts.items() if "pay.ok" in key]
    assert (fact["moves_minor"], fact["outside_minor"]) == (1999, 1999)
    assert balance(billing, life) == {}
    old = taken([snapshot("invoice.paid", invoice(paid_out_of_band=True), second=START)])
    assert sums([entry for _, entry in old.entries.values()])[0].outside == 1999


def test_a_credit_note_is_told_and_moves_nothing_itself() -> None:
    """Rule: the refund it may lead to moves the money."""
    life = Life().wait(5).pay().wait(5).credit(500).wait(1).refund(500)
    billing = taken(one.body for one in life.told)
    kinds = {json.loads(body)["type"] for _, body in billing.facts.values()}
    assert {"invoice.credited", "payment.refunded"} <= kinds
    assert sum(moves(billing).values()) == 1499
    assert balance(billing, life) == {"usd": 1499}


def test_funds_come_back_once() -> None:
    """Rule: `funds_reinstated` comes again with another status: it is one movement."""
    life = Life().wait(5).pay().wait(5).dispute().wait(5).win_dispute()
    billing = taken(one.body for one in life.told)
    name = next(e.id for k, (_, e) in billing.entries.items() if k[0] == EntryKind.DISPUTE).partition("/")[0]
    own = {key: moved for key, moved in moves(billing).items() if key.startswith("dispute")}
    assert own == {f"dispute:{name}:funds_withdrawn": -1999, f"dispute:{name}:funds_reinstated": 1999}
    without = {**dispute(status="won"), "balance_transactions": []}
    billing = told(
        ("charge.dispute.funds_withdrawn", dispute(), 1),
        ("charge.dispute.funds_reinstated", dispute(status="under_review"), 5),
        ("charge.dispute.funds_reinstated", without, 5),
    )
    assert sum(moves(billing).values()) == 0


@pytest.mark.parametrize(
    ("kind", "thing", "fault"),
    [
        ("invoice.paid", invoice(amount_paid="1999"), "invoice.amount_paid must be a whole number"),
        ("invoice.paid", invoice(amount_paid=19.99), "not a fraction"),
        ("invoice.paid", invoice(amount_paid=True), "not a boolean"),
        ("invoice.paid", invoice(amount_paid=-1), "below nothing"),
        ("invoice.paid", invoice(currency=None), "has no currency"),
        ("invoice.payment_failed", invoice(amount_remaining="5"), "invoice.amount_remaining"),
        ("checkout.session.completed", session(amount_total=None), "not nothing"),
        ("refund.created", {**refund_of("re_1", 5, "pending"), "amount": 10**30}, "beyond any amount"),
        ("charge.dispute.created", dispute(amount="all"), "dispute.amount"),
    ],
)  # fmt: skip
def test_an_amount_that_is_none_is_refused_with_its_name(
    kind: str, thing: dict[str, Any], fault: str
) -> None:
    """Rule: never a fact without an amount; the dead letter names the field, and none of its value."""
    with pytest.raises(MalformedAmountError, match=fault):
        Billing().take(snapshot(kind, thing, second=START))


@pytest.mark.parametrize(
    ("kind", "change", "fault"),
    [
        ("invoice.paid", {"status_transitions": {"paid_at": 10**18}}, "`paid_at` is beyond any date"),
        ("invoice.paid", {"customer": "cus_\x00"}, "control characters"),
        ("invoice.payment_failed", {"next_payment_attempt": -5}, "`next_payment_attempt` is beyond"),
        ("invoice.paid", {"id": "in_" + "x" * 300}, "longer than ids are"),
    ],
)
def test_what_no_ledger_takes_is_refused_with_its_name(kind: str, change: dict[str, Any], fault: str) -> None:
    """Rule: a dead letter says what was wrong, not "defect"."""
    with pytest.raises(MalformedEventError, match=fault):
        Billing().take(snapshot(kind, invoice(**change), second=START))


def test_of_two_equal_keys_the_last_counts_for_door_and_worker() -> None:
    """Rule: JSON with a key twice is read in one way by all; its bytes are stored as they came."""
    body = snapshot("invoice.paid", invoice(), second=START, name="evt_a")
    twice = body.replace(b'{"id": "evt_a"', b'{"id": "evt_first", "id": "evt_a"', 1)
    twice = twice.replace(b'"amount_paid": 1999', b'"amount_paid": 1, "amount_paid": 7', 1)
    assert stripe_events.read(twice).id == events.read(twice).id == "evt_a"
    billing = Billing()
    billing.take(twice)
    assert moves(billing) == {"pay.ok:in_1": 7}


def test_a_defect_says_where_it_is_and_nothing_of_the_event() -> None:
    """Rule: an operator's letter names kind and place; a text of the error may hold what the event holds."""
    try:
        Billing().take(
            snapshot("invoice.paid", invoice(), second=START).replace(b"in_1", b"in_secret") + b"x"
        )
    except Exception as error:
        said = where(error)
    assert "MalformedEventError at billing/model/event.py" in said
    assert "secret" not in said


def balance(billing: Billing, life: Life) -> dict[str, int]:
    """What Stripe's balance holds of a life; entries agree to the minor unit."""
    held: dict[str, int] = {}
    sources = [event for one in life.told for event in (json.loads(one.body)["data"]["object"]["id"],)]
    sources += [
        thing["id"] for thing in life.books.objects("charge") if thing["customer"] == life.now["customer"]
    ]
    for moved in life.books.objects("balance_transaction"):
        if moved["source"] in sources:
            held[moved["currency"]] = held.get(moved["currency"], 0) + moved["amount"]
    found: dict[str, int] = {}
    for sum_ in sums([entry for _, entry in billing.entries.values()]):
        found[sum_.currency] = sum_.balance
    assert {c: n for c, n in found.items() if n} == {c: n for c, n in held.items() if n}
    return {c: n for c, n in held.items() if n}


def money_life(roll: random.Random) -> Life:
    """A life of invoices that are paid, whole or in part, past Stripe or not at all, and what comes of it."""
    life = Life(at=START, priced=objects.price(amount=10_000), tenant=roll.choice("ab"), with_finalized=True)
    for _ in range(roll.randrange(3, 12)):
        life.wait(roll.choice((0.2, 1, 60, 86_400)))
        options = [life.renew, lambda: life.change(metadata={"tenant_id": roll.choice("ab")})]
        if life.invoice["status"] == "open":
            options += [life.pay, life.fail, lambda: life.pay(outside=True), life.write_off]
            options += [lambda: life.pay_part(1000)] if life.invoice["amount_remaining"] > 1000 else []
        if life.charge and life.charge["amount"] - life.charge["amount_refunded"] >= 100:
            options += [
                lambda: life.refund(100),
                lambda: life.refund(100, "pending"),
                lambda: life.credit(50),
            ]
        if life.returned and life.returned["status"] in ("pending", "succeeded"):
            options += [lambda: life.refund_ends("failed")]
        if life.returned and life.returned["status"] == "pending":
            options += [lambda: life.refund_ends("succeeded")]
        if life.charge and not life.charge["disputed"]:
            options.append(life.dispute)
        options += [life.win_dispute] if life.disputed else []
        roll.choice(options)()
    return life


def told_badly(roll: random.Random, life: Life) -> list[Told]:
    """Every event at least once, some twice, in any order."""
    arriving = [*life.told, *roll.sample(life.told, k=len(life.told) // 4)]
    roll.shuffle(arriving)
    return arriving


@pytest.mark.parametrize("orders", [200, pytest.param(10_000, marks=pytest.mark.long)])
def test_random_money_equals_stripes_balance_in_any_order(orders: int) -> None:
    """Rule: entries, whose they are, and facts equal those of the order it happened in; entries equal the
    stand-in's balance, facts what was received, to the minor unit."""
    roll = random.Random(18)
    for _ in range(orders // 5):
        life = money_life(roll)
        wanted = taken(one.body for one in life.told)
        balance(wanted, life)
        received = sum(s.balance + s.outside for s in sums([e for _, e in wanted.entries.values()]))
        pending = sum(
            e.in_balance
            for _, e in wanted.entries.values()
            if e.kind is EntryKind.REFUND and e.state == "pending"
        )
        open_parts = sum(moves(wanted).values()) - (received - pending)
        assert open_parts <= 0  # a part of an invoice that nobody settled yet is an entry, and no fact
        for _ in range(5):
            billing = taken(one.body for one in told_badly(roll, life))
            assert billing.entries == wanted.entries
            assert billing.facts == wanted.facts
