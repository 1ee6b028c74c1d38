"""A second generator of what may happen at Stripe, which shares nothing with the stand-in's lives but shapes;
it keeps books of its own, by hand, of what the balance holds and of who owns what."""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

from kgents_devstack.stripe import START, new_id, objects, snapshot

DAY = 86_400
TENANTS = ("red", "green", "blue")
ACCOUNT = "acct_world"
Thing = dict[str, Any]


class World:
    """One customer, two subscriptions of whichever tenants, and a checkout now and then.

    Attributes:
        bodies: Every event, in the order it happened.
        balance: By currency, what Stripe's balance holds, fees aside.
        owners: By subscription, who has it now.
    """

    def __init__(self, roll: random.Random) -> None:
        self.roll = roll
        self.second = START
        self.livemode = roll.random() < 0.5
        self.account = ACCOUNT if roll.random() < 0.3 else None
        self.bodies: list[bytes] = []
        self.balance: Counter[str] = Counter()
        self.owners: dict[str, str] = {}
        self.seconds: list[int] = []
        self.customer = new_id("cus")
        self.subscriptions = [self._subscribe() for _ in range(2)]
        self.open: list[Thing] = []
        self.paid: list[tuple[str, int, str]] = []  # payment intent, amount, currency
        self.pending: list[Thing] = []
        self.disputed: list[Thing] = []
        self.billed: list[Thing] = []
        self.notes: list[Thing] = []

    def live(self, changes: int) -> None:
        """So many things happen."""
        for _ in range(changes):
            self.second += self.roll.choice((0, 0, 1, 2, 60, DAY, 9 * DAY))
            self.roll.choice(self._possible())()

    def _possible(self) -> list[Callable[[], None]]:
        found = [self._move, *([self._change] * 4), self._bill, self._checkout]
        if self.open:
            found += [self._pay, self._pay, self._fail, self._write_off, self._pay_outside]
        if self.paid:
            found += [self._refund, self._refund, self._dispute]
        if self.billed:
            found += [self._credit, self._void_credit]
        if self.pending:
            found += [self._refund_ends] * 2
        return found + ([self._win] if self.disputed else [])

    def _tell(self, kind: str, thing: Thing, previous: Thing | None = None) -> None:
        more: dict[str, Any] = {"livemode": self.livemode}
        if self.account:
            more["account"] = self.account
        self.seconds.append(self.second)
        self.bodies.append(snapshot(kind, thing, second=self.second, previous=previous, **more))

    def _subscribe(self) -> Thing:
        thing = objects.subscription(
            new_id("sub"), tenant=self.roll.choice(TENANTS), payer=self.customer, at=self.second
        )
        if self.roll.random() < 0.5:  # a year beside the month
            first = thing["items"]["data"][0]
            year = {"current_period_start": self.second, "current_period_end": self.second + 365 * DAY}
            other = {**first, "id": new_id("si"), "price": objects.price("price_year"), **year}
            thing["items"]["data"] = [other, first]
        thing["status"] = "active"
        self._tell("customer.subscription.created", thing)
        self.owners[thing["id"]] = thing["metadata"]["tenant_id"]
        return thing

    def _update(self, thing: Thing, **fields: Any) -> None:
        previous = {name: copy.deepcopy(thing.get(name)) for name in fields}
        thing.update(fields)
        self._tell("customer.subscription.updated", thing, previous)

    def _move(self) -> None:
        thing = self.roll.choice(self.subscriptions)
        tenant = self.roll.choice([name for name in TENANTS if name != thing["metadata"]["tenant_id"]])
        self._update(thing, metadata={"tenant_id": tenant})
        self.owners[thing["id"]] = tenant

    def _change(self) -> None:
        thing = self.roll.choice(self.subscriptions)
        status = {"active": "past_due", "past_due": "active"}
        pause = None if thing["pause_collection"] else {"behavior": "void", "resumes_at": None}
        self.roll.choice(
            (
                lambda: self._update(thing, status=status[thing["status"]]),
                lambda: self._update(thing, status=status[thing["status"]]),
                lambda: self._update(thing, pause_collection=pause),
                lambda: self._update(thing, cancel_at_period_end=not thing["cancel_at_period_end"]),
            )
        )()

    def _bill(self) -> None:
        thing = self.roll.choice(self.subscriptions)
        invoice = objects.invoice(
            new_id("in"), subscription=thing["id"], payer=self.customer, amount=9000, reason="manual",
            currency=self.roll.choice(("usd", "jpy")), at=self.second, tenant=thing["metadata"]["tenant_id"],
        )  # fmt: skip
        self._tell("invoice.finalized", invoice)
        self.open.append(invoice)
        self.billed.append(invoice)

    def _pay(self) -> None:
        """All of what is left, or a third of it."""
        invoice = self.roll.choice(self.open)
        left = invoice["amount_remaining"]
        is_whole = invoice["status"] == "uncollectible" or self.roll.random() < 0.6
        amount = left if is_whole else left // 3
        charge = objects.charge(
            new_id("ch"), payer=self.customer, amount=amount, currency=invoice["currency"]
        )
        self._settle(invoice, amount, charge)
        self.balance[invoice["currency"]] += amount
        self.paid.append((charge["payment_intent"], amount, invoice["currency"]))

    def _pay_outside(self) -> None:
        invoice = self.roll.choice(self.open)
        amount = invoice["amount_remaining"]
        invoice["amount_paid_off_stripe"] = amount
        self._settle(invoice, amount, None)

    def _settle(self, invoice: Thing, amount: int, charge: Thing | None) -> None:
        part = objects.invoice_payment(
            new_id("inpay"), invoice=invoice["id"], amount=amount, charge=charge,
            currency=invoice["currency"], at=self.second,
        )  # fmt: skip
        invoice["amount_paid"] += amount
        invoice["amount_remaining"] -= amount
        kinds = ["invoice_payment.paid"]
        if invoice["amount_remaining"] == 0:
            invoice["status"] = "paid"
            invoice["status_transitions"]["paid_at"] = self.second
            kinds += self.roll.choice((["invoice.paid"], ["invoice.payment_succeeded", "invoice.paid"]))
            self.open.remove(invoice)
        for kind in kinds:
            self._tell(kind, part if kind == "invoice_payment.paid" else invoice)

    def _fail(self) -> None:
        self.second += 1  # nobody fails twice in one second
        invoice = self.roll.choice(self.open)
        invoice["attempt_count"] += self.roll.choice((0, 1))
        self._tell("invoice.payment_failed", invoice)
        if self.roll.random() < 0.5:
            self._tell("invoice.payment_action_required", invoice)

    def _write_off(self) -> None:
        invoice = self.roll.choice(self.open)
        if invoice["status"] != "open":
            return
        invoice["status"] = "uncollectible"
        self._tell("invoice.marked_uncollectible", invoice)
        if self.roll.random() < 0.5:
            self.open.remove(invoice)

    def _checkout(self) -> None:
        intent, tenant = new_id("pi"), self.roll.choice(TENANTS)
        session = {
            **objects.checkout_session(new_id("cs"), payer=self.customer, at=self.second),
            "metadata": {"tenant_id": tenant}, "payment_intent": intent,
        }  # fmt: skip
        if self.roll.random() < 0.4:
            self._tell("checkout.session.completed", {**session, "payment_status": "unpaid"})
            self._tell("checkout.session.async_payment_failed", {**session, "payment_status": "unpaid"})
            self._tell("checkout.session.async_payment_succeeded", session)
        else:
            self._tell("checkout.session.completed", session)
        self.balance["eur"] += 500
        self.paid.append((intent, 500, "eur"))

    def _refund(self) -> None:
        place = self.roll.randrange(len(self.paid))
        intent, left, currency = self.paid[place]
        amount = min(left, 1 + self.roll.randrange(300))
        self.paid[place] = (intent, left - amount, currency)
        if amount == 0:
            return
        paid = {"id": f"ch_of_{intent}", "payment_intent": intent, "currency": currency, "customer": None}
        refund = objects.refund(
            new_id("re"), paid, amount, status=self.roll.choice(("pending", "succeeded")), at=self.second
        )
        self._tell("refund.created", refund)
        self.balance[currency] -= amount
        self.pending.append(refund)

    def _refund_ends(self) -> None:
        refund = self.pending.pop(self.roll.randrange(len(self.pending)))
        if refund["status"] == "pending" and self.roll.random() < 0.5:
            self._tell("refund.updated", {**refund, "status": "succeeded"}, {"status": "pending"})
            refund["status"] = "succeeded"
        if self.roll.random() < 0.5:
            self._tell("refund.failed", {**refund, "status": "failed"})
            self.balance[refund["currency"]] += refund["amount"]

    def _dispute(self) -> None:
        intent, amount, currency = self.roll.choice(self.paid)
        if amount == 0:
            return
        paid = {"id": f"ch_of_{intent}", "payment_intent": intent, "currency": currency, "amount": amount}
        dispute = objects.dispute(new_id("du"), paid, at=self.second)
        self._tell("charge.dispute.created", dispute)
        self._took(dispute, -amount)
        self._tell("charge.dispute.funds_withdrawn", dispute)
        self.disputed.append(dispute)

    def _credit(self) -> None:
        """Before it is paid, less is left to pay; afterwards the customer has it, here or past Stripe."""
        invoice = self.roll.choice(self.billed)
        is_open = invoice in self.open and invoice["status"] == "open"
        amount = 1 + self.roll.randrange(200)
        if is_open and invoice["amount_remaining"] <= 3 * amount:
            return
        note = objects.credit_note(
            new_id("cn"), invoice=invoice["id"], payer=self.customer, amount=amount,
            currency=invoice["currency"], at=self.second,
        )  # fmt: skip
        if is_open:
            note |= {"pre_payment_amount": amount, "post_payment_amount": 0, "type": "pre_payment"}
            invoice["amount_remaining"] -= amount
            invoice["amount_due"] -= amount
        elif self.roll.random() < 0.5:
            note["out_of_band_amount"] = amount
        self._tell("credit_note.created", note)
        self.notes.append(note)

    def _void_credit(self) -> None:
        """Only of what was paid: less is left to pay still."""
        valid = [note for note in self.notes if note["type"] == "post_payment" and note["status"] == "issued"]
        if valid:
            note = self.roll.choice(valid)
            note |= {"status": "void", "voided_at": self.second}
            self._tell("credit_note.voided", note)

    def _win(self) -> None:
        dispute = self.disputed.pop(self.roll.randrange(len(self.disputed)))
        self._took(dispute, dispute["amount"])
        for status in ("under_review", "won"):
            dispute["status"] = status
            self._tell("charge.dispute.funds_reinstated", dispute)

    def _took(self, dispute: Thing, amount: int) -> None:
        moved = objects.balance_transaction(
            new_id("txn"), dispute["id"], "adjustment", amount, at=self.second
        )
        dispute["balance_transactions"].append(moved)
        self.balance[dispute["currency"]] += amount
