"""Entries: every movement of money, with its sign, state, mode and account; facts are read off them.

An entry is about one object of Stripe's (an invoice, a checkout, a payment of an invoice, a refund, a
movement of a dispute, a credit note). It remembers each state it was seen in, with the amount of that state,
and forgets none: what it says, and which facts it tells, depends on which states were seen and not on their
order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec


class EntryKind(StrEnum):
    """What an entry is about."""

    INVOICE = "invoice"  # what was paid of an invoice, in all
    INVOICE_PAYMENT = "invoice_payment"  # one payment of an invoice: part of the above
    CHECKOUT = "checkout"
    REFUND = "refund"
    CHARGE_REFUND = "charge_refund"  # a refund as its charge tells it
    DISPUTE = "dispute"  # the bank took money, or gave it back
    CREDIT_NOTE = "credit_note"  # moves no money itself


# Which of the states that were seen is the last, weakest first.
RANKS: Mapping[EntryKind, tuple[str, ...]] = {
    EntryKind.INVOICE: ("voided", "uncollectible", "paid"),
    EntryKind.INVOICE_PAYMENT: ("paid",),
    EntryKind.CHECKOUT: ("failed", "paid"),
    EntryKind.REFUND: ("requires_action", "pending", "succeeded", "canceled", "failed"),
    EntryKind.CHARGE_REFUND: ("succeeded", "failed"),
    EntryKind.DISPUTE: ("withdrawn", "reinstated"),
    EntryKind.CREDIT_NOTE: ("issued", "void"),
}
# What says what was paid in all.
_TOTALS = (EntryKind.INVOICE, EntryKind.CHECKOUT)
# States in which an entry moved money at Stripe: a refund is taken from the balance while it is pending.
IN_BALANCE = frozenset({"voided", "uncollectible", "paid", "pending", "succeeded", "withdrawn", "reinstated"})


class Mark(msgspec.Struct, frozen=True):
    """A state an entry was seen in.

    Attributes:
        amount: Minor units, with its sign: what came in is above zero.
        outside: The part of it that did not go through Stripe.
        second: When it reached the state.
        data: What the state's fact says besides.
    """

    amount: int
    second: int
    outside: int = 0
    data: Mapping[str, Any] = {}


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One movement of money.

    Attributes:
        id: The object's id; for a movement of a dispute, with its number.
        of: What was paid: an invoice or a checkout, or the payment (intent) that paid it.
        seen: By state. Each is kept as it was first heard.
        source: As facts have it.
    """

    id: str
    kind: EntryKind
    of: str
    currency: str
    seen: Mapping[str, Mark]
    source: str
    livemode: bool | None = None
    account: str | None = None

    @property
    def state(self) -> str:
        """The last state it was seen in."""
        ranks = RANKS[self.kind]
        return max(self.seen, key=lambda state: ranks.index(state) if state in ranks else -1)

    @property
    def in_balance(self) -> int:
        """What it says that Stripe's balance holds of it, without what went past Stripe."""
        if self.kind in (EntryKind.DISPUTE, EntryKind.CHARGE_REFUND):
            return sum(mark.amount for mark in self.seen.values())
        mark = self.seen[self.state]
        return mark.amount - mark.outside if self.state in IN_BALANCE else 0


def is_one_off(entry: Entry) -> bool:
    """Whether it is a paid invoice that no subscription made, as a checkout's is."""
    is_paid = entry.kind is EntryKind.INVOICE and "paid" in entry.seen
    return is_paid and "subscription" not in entry.seen["paid"].data


def merged(known: Entry | None, new: Entry) -> Entry:
    """An entry with the states of both; of one state, what was known first."""
    return new if known is None else msgspec.structs.replace(known, seen={**new.seen, **known.seen})


@dataclass(frozen=True, slots=True)
class Sums:
    """What the entries of one payment come to, in minor units.

    Attributes:
        balance: What Stripe's balance holds of it, fees aside.
        outside: What was paid past Stripe.
    """

    currency: str
    balance: int
    outside: int


def sums(entries: Sequence[Entry]) -> list[Sums]:
    """What the entries of one payment come to, by currency.

    An invoice (or a checkout) says what was paid in all, its payments what each of them was: of the first
    only what no payment tells is counted.
    """
    found = []
    for currency in sorted({entry.currency for entry in entries}):
        of = [entry for entry in entries if entry.currency == currency]
        parts = [e.seen[e.state] for e in of if e.kind is EntryKind.INVOICE_PAYMENT]
        totals = [e.seen[e.state] for e in of if e.kind in _TOTALS and e.state in IN_BALANCE]
        part, part_outside = sum(m.amount for m in parts), sum(m.outside for m in parts)
        total, total_outside = sum(m.amount for m in totals), sum(m.outside for m in totals)
        received, outside = max(total, part), max(total_outside, part_outside)
        others = sum(
            e.in_balance
            for e in of
            if e.kind not in (*_TOTALS, EntryKind.INVOICE_PAYMENT, EntryKind.CREDIT_NOTE)
        )
        found.append(Sums(currency, received - outside + others, outside))
    return found
