"""Every event type of the table gives the fact it stands for, and no other, from current shapes."""

from __future__ import annotations

from typing import Any

import pytest

from kgents_billing.model import event as events
from kgents_billing.model.decision import Outcome, decide
from kgents_billing.model.event_map import ENDPOINT_TYPES
from kgents_billing.model.facts import Fact
from kgents_billing.model.known import Known, Options
from kgents_billing.model.money_facts import facts_of
from kgents_billing.model.projection import UnreadableObjectError
from kgents_devstack.stripe import objects

from .lives import START, Billing, Life, snapshot

TENANT = {"tenant_id": "acme"}


def invoice(**fields: Any) -> dict[str, Any]:
    """An invoice since 2025-03-31: its subscription is at `parent`."""
    return {
        **objects.invoice("in_1", subscription="sub_1", payer="cus_1", reason="subscription_cycle"),
        "amount_paid": 1999,
        "attempt_count": 2,
        "next_payment_attempt": START + 86_400,
        "customer_email": "jo@example.org",
        "hosted_invoice_url": "https://invoice.example/secret",
        **fields,
    }


def old_invoice(**fields: Any) -> dict[str, Any]:
    """An invoice before 2025-03-31: its subscription is at the top."""
    made = invoice(subscription="sub_1", subscription_details={"metadata": TENANT}, **fields)
    del made["parent"]
    return made


def session(**fields: Any) -> dict[str, Any]:
    """A checkout session."""
    made = objects.checkout_session("cs_1", payer="cus_1", reference="acme")
    return {**made, "customer_details": {"email": "jo@example.org", "name": "Jo"}, **fields}


CHARGE = objects.charge("ch_1", payer="cus_1")


def invoice_payment(**fields: Any) -> dict[str, Any]:
    """A payment of an invoice; it says nothing of whose it is."""
    return {**objects.invoice_payment("inpay_1", invoice="in_1", amount=1999, charge=CHARGE), **fields}


def credit_note(**fields: Any) -> dict[str, Any]:
    """A credit note."""
    return {**objects.credit_note("cn_1", invoice="in_1", payer="cus_1", amount=500), **fields}


INVOICED = {
    "enabled": True,
    "invoice_data": {
        "account_tax_ids": None, "custom_fields": None, "description": None, "footer": None, "issuer": None,
        "metadata": None, "rendering_options": None,
    },
}  # fmt: skip


def refund(**fields: Any) -> dict[str, Any]:
    """A refund."""
    return {**objects.refund("re_1", CHARGE, 300), "currency": "jpy", "metadata": TENANT, **fields}


def dispute(**fields: Any) -> dict[str, Any]:
    """A dispute."""
    return {**objects.dispute("dp_1", CHARGE), "currency": "kwd", "metadata": TENANT, **fields}


def facts(
    kind: str, thing: dict[str, Any], previous: dict[str, Any] | None = None, **known: Any
) -> list[Fact]:
    """What one event tells."""
    event = events.read(snapshot(kind, thing, second=START + 5, previous=previous))
    decided = decide(event, Known(payment_tenant="acme", **known), Options())
    told = [fact for entry in decided.entries for fact in facts_of(entry)]
    return [*decided.facts, *told]


SUB = objects.subscription("sub_1")
CUSTOMER = objects.customer("cus_1")
ACTIVE = {**SUB, "status": "active"}
TABLE: list[tuple[str, dict[str, Any], dict[str, Any] | None, list[tuple[str, str]]]] = [
    ("customer.subscription.created", SUB, None, []),
    ("customer.subscription.created", ACTIVE, None, [("subscription.started", "sub.started:sub_1:acme")]),
    (
        "customer.subscription.updated",
        ACTIVE,
        {"status": "incomplete"},
        [("subscription.started", "sub.started:sub_1:acme")],
    ),
    ("customer.subscription.trial_will_end", {**SUB, "status": "trialing", "trial_end": START + 9}, None,
     [("subscription.updated", f"sub.trial_end:sub_1:{START + 9}")]),
    ("checkout.session.completed", session(), None, [("payment.success", "pay.ok:cs_1")]),
    ("checkout.session.completed", session(invoice="in_1"), None, []),
    ("checkout.session.completed", session(invoice_creation=INVOICED), None, []),
    ("checkout.session.completed", session(mode="subscription"), None, []),
    ("checkout.session.async_payment_succeeded", session(), None, [("payment.success", "pay.ok:cs_1")]),
    ("checkout.session.async_payment_failed", session(), None, [("payment.failed", "pay.fail:cs_1")]),
    ("invoice.paid", invoice(), None, [("payment.success", "pay.ok:in_1")]),
    ("invoice.paid", old_invoice(), None, [("payment.success", "pay.ok:in_1")]),
    ("invoice.paid", invoice(amount_paid=0), None, []),
    ("invoice.payment_failed", invoice(), None, [("payment.failed", f"pay.fail:in_1:2:{START + 5}")]),
    ("invoice.payment_action_required", invoice(), None,
     [("payment.action_required", f"pay.action:in_1:2:{START + 5}")]),
    ("invoice.payment_attempt_required", invoice(), None,
     [("payment.action_required", f"pay.attempt:in_1:2:{START + 5}")]),
    ("invoice_payment.paid", invoice_payment(), None,
     [("invoice.payment_applied", "inv.payment:inpay_1")]),
    ("credit_note.created", credit_note(), None, [("invoice.credited", "cn:cn_1:issued")]),
    ("credit_note.voided", credit_note(status="void"), None, [("invoice.credit_voided", "cn:cn_1:void")]),
    ("invoice.finalized", invoice(), None, [("invoice.finalized", "inv.finalized:in_1")]),
    ("invoice.finalization_failed", invoice(), None,
     [("invoice.finalization_failed", "inv.finalization_failed:in_1")]),
    ("invoice.voided", invoice(), None,
     [("invoice.voided", "inv.voided:in_1"), ("payment.partial", "pay.part_void:in_1")]),
    ("invoice.voided", invoice(amount_paid=0), None, [("invoice.voided", "inv.voided:in_1")]),
    ("invoice.marked_uncollectible", invoice(), None,
     [("invoice.marked_uncollectible", "inv.marked_uncollectible:in_1"),
      ("payment.partial", "pay.part:in_1")]),
    ("invoice.overdue", invoice(), None, [("invoice.overdue", "inv.overdue:in_1")]),
    ("refund.created", refund(status="pending"), None, [("payment.refund_pending", "refund:re_1:pending")]),
    ("refund.updated", refund(), None, [("payment.refunded", "refund:re_1:succeeded")]),
    ("refund.failed", refund(status="failed"), None, [("payment.refund_failed", "refund:re_1:failed")]),
    *(
        (f"charge.dispute.{verb}", dispute(), None,
         [("payment.disputed", f"dispute:dp_1:{verb}:needs_response")])
        for verb in ("created", "updated", "closed")
    ),
    *(
        (f"charge.dispute.{verb}", dispute(), None, [("payment.disputed", f"dispute:dp_1:{verb}")])
        for verb in ("funds_withdrawn", "funds_reinstated")
    ),
    ("customer.created", CUSTOMER, None, []),
    ("customer.updated", CUSTOMER, None, []),
    ("customer.deleted", CUSTOMER, None,
     [("customer.deleted", "cus.deleted:cus_1")]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "thing", "previous", "wanted"), TABLE, ids=lambda v: v if isinstance(v, str) else ""
)
def test_a_type_tells_its_fact(
    kind: str, thing: dict[str, Any], previous: dict[str, Any] | None, wanted: list[tuple[str, str]]
) -> None:
    """Rule: the table of the README's endpoint list, with its semantic keys."""
    assert [(fact.type, fact.key) for fact in facts(kind, thing, previous)] == wanted


@pytest.mark.parametrize("order", [("paid", "payment_succeeded"), ("payment_succeeded", "paid")])
def test_a_payment_told_by_two_types_is_one_fact(order: tuple[str, str]) -> None:
    """Rule: `invoice.payment_succeeded`, all that some endpoints send, tells what `invoice.paid` does."""
    thing = invoice(status_transitions={"paid_at": START + 3})
    billing = Billing()
    for place, verb in enumerate(order):
        billing.take(snapshot(f"invoice.{verb}", thing, second=START + 4 + place))
    assert list(billing.facts) == ["pay.ok:in_1"]
    assert billing.told_twice == 0


def test_the_table_holds_every_type_the_endpoint_should_send() -> None:
    """Rule: no type is asked for that nobody looked at here or in the lives."""
    of_lives = {
        f"customer.subscription.{verb}"
        for verb in ("deleted", "paused", "resumed", "pending_update_applied", "pending_update_expired")
    }
    assert {kind for kind, *_ in TABLE} | of_lives == set(ENDPOINT_TYPES)


@pytest.mark.parametrize("verb", ["deleted", "paused", "resumed", "pending_update_applied"])
def test_a_subscriptions_other_verbs(verb: str) -> None:
    """Rule: an end is told once and only of what had started; the others tell what differs."""
    life = Life(at=START).wait(5).become("active")
    before = {"status": "active"}
    thing = {**life.now, "status": {"deleted": "canceled", "paused": "paused"}.get(verb, "active")}
    previous = {"deleted": None, "paused": before, "resumed": {"status": "paused"}}.get(
        verb, {"cancel_at_period_end": True}
    )
    found = facts(f"customer.subscription.{verb}", thing, previous)
    # A resumed one was paused, so it had started; a deleted one tells by itself nothing of a start.
    kinds = {fact.type for fact in found}
    if verb == "deleted":
        assert kinds == set()
    else:
        assert "subscription.updated" in kinds


@pytest.mark.parametrize(
    ("amount", "currency", "exponent"), [(1999, "usd", 2), (300, "jpy", 0), (1000, "kwd", 3), (500, "isk", 2)]
)
def test_amounts_are_minor_units_with_their_exponent(amount: int, currency: str, exponent: int) -> None:
    """Rule: no float and no division: zero- and three-decimal currencies say so."""
    (fact,) = facts("invoice.paid", invoice(amount_paid=amount, currency=currency))
    assert (fact.data["amount_minor"], fact.data["currency"], fact.data["exponent"]) == (
        amount,
        currency,
        exponent,
    )


def test_an_expanded_object_is_its_id() -> None:
    """Rule: where Stripe sends a whole object in place of an id, the fact holds the id and nothing else."""
    customer = {"id": "cus_1", "object": "customer", "email": "jo@example.org", "name": "Jo"}
    (paid,) = facts("invoice.paid", invoice(customer=customer))
    assert paid.data["customer"] == "cus_1"
    (taken,) = facts("charge.dispute.created", dispute(charge={"id": "ch_1", "billing_details": customer}))
    assert taken.data["charge"] == "ch_1"
    whole = {
        **ACTIVE,
        "customer": customer,
        "latest_invoice": {"id": "in_9", "customer_email": "jo@example.org"},
    }
    (changed,) = facts(
        "customer.subscription.updated",
        whole,
        {"latest_invoice": "in_8"},
    )[1:]
    assert changed.data["customer"] == "cus_1"
    assert changed.data["to"] == {"latest_invoice": "in_9"}
    for fact in (paid, taken, changed):
        assert b"example" not in fact.body("acme")


def test_every_amount_is_a_whole_number_of_minor_units() -> None:
    """Rule: no float is in any fact; a second partial refund is a fact of its own."""

    def numbers(value: object) -> list[object]:
        if isinstance(value, dict):
            return [n for v in value.values() for n in numbers(v)]
        return [value] if isinstance(value, int | float) else []

    for kind, thing, previous, _ in TABLE:
        for fact in facts(kind, thing, previous):
            assert not [n for n in numbers(dict(fact.data)) if isinstance(n, float)]
    first, second = facts("refund.created", refund(id="re_1")) + facts("refund.created", refund(id="re_2"))
    assert first.key != second.key


def test_an_upcoming_invoice_has_no_id_and_tells_nothing() -> None:
    """Rule: `invoice.upcoming` is about nothing that exists yet; a paid one without an id is a letter."""
    thing = invoice()
    del thing["id"]
    assert facts("invoice.upcoming", thing) == []
    with pytest.raises(UnreadableObjectError, match="missing required field `id`"):
        facts("invoice.paid", thing)


def test_an_unknown_type_and_an_unknown_status() -> None:
    """Rule: what is younger than this program is stored and counted; access stays what it was."""
    unknown = events.read(snapshot("issuing_card.created", {"id": "ic_1"}, second=START))
    assert decide(unknown, Known(), Options()).outcome is Outcome.IGNORED
    strange = events.read(
        snapshot("customer.subscription.updated", {**SUB, "status": "dreaming"}, second=START, previous={})
    )
    decision = decide(strange, Known(), Options())
    assert decision.outcome is Outcome.APPLIED
    assert "unknown_status" in decision.notes


def test_nothing_personal_is_in_a_fact() -> None:
    """Rule: no address, name, URL or free text leaves the object."""
    for kind, thing, previous, _ in TABLE:
        for fact in facts(kind, thing, previous):
            body = fact.body("acme").decode()
            assert "example" not in body
            assert "Jo" not in body
