"""A subscription's life at Stripe, from its first invoice to its end: every change makes Stripe's events.

Nothing here asks a clock: a life has its own time, so that changes can share a second. What is charged,
refunded and disputed follows the invoices.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from kgents_devstack.stripe import objects
from kgents_devstack.stripe.events import Books, snapshot
from kgents_devstack.stripe.objects import MONTH, START, Object, new_id

ENDED = ("canceled", "incomplete_expired")
RETRY_SECONDS = 86_400


@dataclass(frozen=True, slots=True)
class Told:
    """One event of a life: what Stripe would send, and when it happened."""

    at: float
    body: bytes

    @property
    def id(self) -> str:
        """The event's id."""
        return str(json.loads(self.body)["id"])

    @property
    def type(self) -> str:
        """The event's type."""
        return str(json.loads(self.body)["type"])


class Life:
    """A subscription, its customer, its invoices and what became of their money.

    Args:
        at: When it begins, in seconds since the epoch.
        tenant: Named in the subscription's metadata.
        basil: In the shape since 2025-03-31; else in the one before.
        books: Where it happens.
        with_customer: Also tell of the customer's creation.
        trial_days: Begin on trial instead of unpaid.
        with_finalized: Also tell of each invoice when it is made.

    Attributes:
        now: The subscription as it is.
        history: The subscription as it was, and since when.
        told: Every event so far.
        invoice: The latest invoice.
        charge: The last money that was taken.
        returned: The last refund.
        disputed: The dispute that is open.
    """

    def __init__(
        self,
        *,
        at: float = START,
        tenant: str | None = "acme",
        basil: bool = True,
        books: Books | None = None,
        with_customer: bool = False,
        trial_days: int = 0,
        priced: Mapping[str, Any] | None = None,
        with_finalized: bool = False,
    ) -> None:
        self.name = new_id("sub")
        self.basil = basil
        self.with_finalized = with_finalized
        self.at = at
        self.tenant = tenant
        self.books = books or Books()
        self.history: list[tuple[float, Object]] = []
        self.told: list[Told] = []
        self.charge: Object | None = None
        self.returned: Object | None = None
        self.disputed: Object | None = None
        self.customer = objects.customer(f"cus_{self.name}", tenant=tenant, at=int(at))
        if with_customer:
            self._tell("customer.created", self.customer)
        else:
            self.books.put(self.customer)
        self.now = objects.subscription(self.name, tenant=tenant, priced=priced, at=int(at), basil=basil)
        if trial_days:
            end = int(at) + trial_days * 86_400
            self.now |= {"status": "trialing", "trial_start": int(at), "trial_end": end}
        self.invoice = self._bill("subscription_create")
        self._tell_change("customer.subscription.created", None)

    def wait(self, seconds: float) -> Self:
        """Time passes."""
        self.at += seconds
        return self

    def change(self, **fields: Any) -> Self:
        """Top-level fields become so; of hashes, only what differs is said as it was."""
        previous = {name: _was(self.now.get(name), new) for name, new in fields.items()}
        self.now |= copy.deepcopy(fields)
        return self._tell_change("customer.subscription.updated", previous)

    def become(self, status: str) -> Self:
        """Its status becomes so, whatever the reason."""
        return self.end(status) if status in ENDED else self.change(status=status)

    def change_item(self, **fields: Any) -> Self:
        """The item becomes so: Stripe says the whole list as it was."""
        previous = {"items": copy.deepcopy(self.now["items"])}
        self._item().update(fields)
        return self._tell_change("customer.subscription.updated", previous)

    def change_price(self, priced: Mapping[str, Any]) -> Self:
        """The item is another one from now on."""
        return self.change_item(price=dict(priced), plan=objects.plan(priced))

    def cancel_at_period_end(self) -> Self:
        """It shall end when what is paid for ends."""
        return self.change(
            cancel_at=self._period()["current_period_end"],
            cancel_at_period_end=True,
            canceled_at=int(self.at),
            cancellation_details={**self.now["cancellation_details"], "reason": "cancellation_requested"},
        )

    def keep(self) -> Self:
        """It shall not end after all."""
        return self.change(
            cancel_at=None,
            cancel_at_period_end=False,
            canceled_at=None,
            cancellation_details={**self.now["cancellation_details"], "reason": None},
        )

    def renew(self) -> Self:
        """A month is over: the next one begins, with an open invoice; or the end, if that was asked for."""
        if self.now["cancel_at_period_end"]:
            return self.end()
        place = self._period()
        start = place["current_period_end"]
        period = {"current_period_start": start, "current_period_end": start + MONTH}
        self.invoice = self._bill("subscription_cycle")
        latest = {"latest_invoice": self.invoice["id"]}
        if not self.basil:
            return self.change(**period, **latest)
        previous = {"items": copy.deepcopy(self.now["items"]), "latest_invoice": self.now["latest_invoice"]}
        place.update(period)
        self.now |= latest
        return self._tell_change("customer.subscription.updated", previous)

    def pay(self, *, outside: bool = False) -> Self:
        """What is left of the latest invoice is paid; what was not active for want of it becomes active.

        Args:
            outside: Not through Stripe, as an operator notes it.
        """
        amount = self.invoice["amount_remaining"]
        self._take(amount, outside=outside)
        self.invoice |= {
            "status": "paid",
            "amount_paid": self.invoice["amount_paid"] + amount,
            "amount_remaining": 0,
            **({"amount_paid_off_stripe": amount} if outside else {}),
            "attempt_count": self.invoice["attempt_count"] + 1,
            "attempted": True,
            "next_payment_attempt": None,
        }
        self.invoice["status_transitions"]["paid_at"] = int(self.at)
        self._tell("invoice.paid", self.invoice)
        is_due = self.now["status"] in ("incomplete", "past_due", "unpaid")
        return self.become("active") if is_due else self

    def pay_part(self, amount: int) -> Self:
        """Part of the latest invoice is paid."""
        self._take(amount, outside=False)
        self.invoice["amount_paid"] += amount
        self.invoice["amount_remaining"] -= amount
        self.books.put(self.invoice)
        return self

    def write_off(self) -> Self:
        """Nobody expects the rest of the latest invoice any more."""
        self.invoice |= {"status": "uncollectible", "next_payment_attempt": None}
        self.invoice["status_transitions"]["marked_uncollectible_at"] = int(self.at)
        return self._tell("invoice.marked_uncollectible", self.invoice)

    def credit(self, amount: int) -> Self:
        """A credit note over part of the latest invoice."""
        note = objects.credit_note(
            new_id("cn"),
            invoice=self.invoice["id"],
            payer=self.now["customer"],
            amount=amount,
            currency=self.invoice["currency"],
            at=int(self.at),
        )
        return self._tell("credit_note.created", note)

    def fail(self) -> Self:
        """The latest invoice could not be paid; what was active is past due."""
        self.invoice |= {
            "attempt_count": self.invoice["attempt_count"] + 1,
            "attempted": True,
            "next_payment_attempt": int(self.at) + RETRY_SECONDS,
        }
        self._tell("invoice.payment_failed", self.invoice)
        return self.become("past_due") if self.now["status"] in ("active", "trialing") else self

    def refund(self, amount: int, status: str = "succeeded") -> Self:
        """Part of the last charge goes back, out of the balance at once: refund and charge tell it."""
        charge = self._charged()
        before = {"amount_refunded": charge["amount_refunded"]}
        charge["amount_refunded"] += amount
        if charge["amount_refunded"] == charge["amount"]:
            before["refunded"] = False
            charge["refunded"] = True
        self._tell("charge.refunded", charge, before)
        self.returned = objects.refund(new_id("re"), charge, amount, status=status, at=int(self.at))
        self._move(self.returned["id"], "refund", -amount)
        return self._tell("refund.created", self.returned)

    def refund_ends(self, status: str) -> Self:
        """The last refund succeeds, or fails: then the balance has it again."""
        refund = self.returned
        if refund is None:
            raise ValueError("nothing was refunded yet")
        before, refund["status"] = {"status": refund["status"]}, status
        if status == "failed":
            self._move(refund["id"], "refund_failure", refund["amount"])
            charge = self._charged()
            charge["amount_refunded"] -= refund["amount"]
            charge["refunded"] = False
            self.books.put(charge)
            return self._tell("refund.failed", refund)
        return self._tell("refund.updated", refund, before)

    def dispute(self) -> Self:
        """The bank takes the last charge back, until it is decided."""
        charge = self._charged()
        charge["disputed"] = True
        self.books.put(charge)
        thing = objects.dispute(new_id("du"), charge, at=int(self.at))
        self._tell("charge.dispute.created", thing)
        taken = self._move(thing["id"], "adjustment", -thing["amount"])
        thing["balance_transactions"] = [taken]
        self.disputed = thing
        return self._tell("charge.dispute.funds_withdrawn", thing)

    def win_dispute(self) -> Self:
        """The bank gives the money of the last dispute back, and says so twice."""
        thing = self.disputed
        if thing is None:
            raise ValueError("nothing is disputed")
        thing["status"] = "under_review"
        thing["balance_transactions"].append(self._move(thing["id"], "adjustment", thing["amount"]))
        self._tell("charge.dispute.funds_reinstated", thing)
        thing["status"] = "won"
        self._tell("charge.dispute.funds_reinstated", thing)
        self.disputed = None
        return self._tell("charge.dispute.closed", thing)

    def end(self, status: str = "canceled") -> Self:
        """It ends."""
        previous = {"status": self.now["status"], "ended_at": None}
        self.now |= {"status": status, "ended_at": int(self.at)}
        if status != "canceled":
            return self._tell_change("customer.subscription.updated", previous)
        self.now["canceled_at"] = self.now["canceled_at"] or int(self.at)
        self.now["cancellation_details"]["reason"] = "cancellation_requested"
        return self._tell_change("customer.subscription.deleted", None)

    def as_of(self, at: float) -> Object:
        """The subscription as a GET answers at that time."""
        return [thing for when, thing in self.history if when <= at][-1]

    def _take(self, amount: int, *, outside: bool) -> None:
        """Money comes in for the latest invoice: a charge, unless it goes past Stripe."""
        currency, at = self.invoice["currency"], int(self.at)
        charge = None
        if not outside:
            charge = objects.charge(
                new_id("ch"), payer=self.now["customer"], amount=amount, currency=currency, at=at
            )
            self.charge = charge
            self.books.put(charge)
            self._move(charge["id"], "charge", amount)
        payment = objects.invoice_payment(
            new_id("inpay"),
            invoice=self.invoice["id"],
            amount=amount,
            charge=charge,
            currency=currency,
            at=at,
        )
        self._tell("invoice_payment.paid", payment)

    def _move(self, source: str, kind: str, amount: int) -> Object:
        """The balance gains or loses money."""
        moved = objects.balance_transaction(
            new_id("txn"), source, kind, amount, currency=self.invoice["currency"], at=int(self.at)
        )
        self.books.put(moved)
        return moved

    def _item(self) -> Object:
        first: Object = self.now["items"]["data"][0]
        return first

    def _period(self) -> Object:
        return self._item() if self.basil else self.now

    def _charged(self) -> Object:
        if self.charge is None:
            raise ValueError("nothing was paid yet")
        return self.charge

    def _bill(self, reason: str) -> Object:
        one = self._item()
        made = objects.invoice(
            new_id("in"),
            subscription=self.name,
            payer=self.now["customer"],
            tenant=self.tenant,
            amount=one["price"]["unit_amount"] * one["quantity"],
            currency=self.now["currency"],
            at=int(self.at),
            reason=reason,
        )
        if self.now["latest_invoice"] is None:
            self.now["latest_invoice"] = made["id"]
        self.books.put(made)
        if self.with_finalized:
            self._tell("invoice.finalized", made)
        return made

    def _tell_change(self, kind: str, previous: Mapping[str, Any] | None) -> Self:
        self.history.append((self.at, copy.deepcopy(self.now)))
        return self._tell(kind, self.now, previous)

    def _tell(self, kind: str, thing: Mapping[str, Any], previous: Mapping[str, Any] | None = None) -> Self:
        body = snapshot(kind, thing, second=int(self.at), previous=previous)
        self.told.append(Told(self.at, body))
        self.books.tell(body)
        return self


def _was(old: object, new: object) -> object:
    if isinstance(old, dict) and isinstance(new, dict):
        return {name: value for name, value in old.items() if new.get(name) != value}
    return copy.deepcopy(old)
