"""Facts of money, each read off an entry: which states tell what, and what each adds to the money received.

`moves_minor` is what a fact adds to it, with its sign: the sum over all facts of a payment is what was
received for it, by whatever way. Facts without it tell something that moved no money.
"""

from __future__ import annotations

from kgents_billing.model import facts as kinds
from kgents_billing.model.entries import Entry, EntryKind, Mark
from kgents_billing.model.facts import Fact, without_nothing
from kgents_billing.model.money import Money, exponent

_DISPUTE_STATUSES = (
    "needs_response", "under_review", "won", "lost", "prevented",
    "warning_needs_response", "warning_under_review", "warning_closed",
)  # fmt: skip


def facts_of(entry: Entry) -> list[Fact]:
    """What the states an entry was seen in tell; never less once more of them were seen."""
    found: list[Fact] = []
    for state, mark in entry.seen.items():
        found += _told(entry, state, mark)
    return found + _taken_back(entry)


def _told(entry: Entry, state: str, mark: Mark) -> list[Fact]:
    name = entry.id
    match entry.kind, state:
        case EntryKind.INVOICE, "paid":
            return [_fact(entry, kinds.PAID, f"pay.ok:{name}", mark, moves=mark.amount)]
        case EntryKind.INVOICE, "uncollectible" if mark.amount:
            return [_fact(entry, kinds.PARTIAL, f"pay.part:{name}", mark, moves=mark.amount)]
        case EntryKind.INVOICE, "voided":
            return [_fact(entry, kinds.PARTIAL, f"pay.part_void:{name}", mark, moves=mark.amount)]
        case EntryKind.CHECKOUT, "paid":
            return [
                _fact(entry, kinds.PAID, f"pay.ok:{name}", mark, moves=mark.amount, formerly=(f"pay:{name}",))
            ]
        case EntryKind.CHECKOUT, "failed":
            return [_fact(entry, kinds.FAILED, f"pay.fail:{name}", mark, formerly=(f"pay:{name}",))]
        case EntryKind.INVOICE_PAYMENT, _:
            return [_fact(entry, kinds.PAYMENT_APPLIED, f"inv.payment:{name}", mark)]
        case EntryKind.REFUND, "succeeded":
            return [_fact(entry, kinds.REFUNDED, f"refund:{name}:{state}", mark, moves=mark.amount)]
        case EntryKind.REFUND, "pending" | "requires_action":
            return [_fact(entry, kinds.REFUND_PENDING, f"refund:{name}:{state}", mark)]
        case EntryKind.REFUND, _:
            return [_fact(entry, kinds.REFUND_FAILED, f"refund:{name}:{state}", mark)]
        case EntryKind.CHARGE_REFUND, "succeeded":
            key, before = f"chrefund:{name}", (f"chrefund:{name.rpartition(':')[0]}",)
            return [_fact(entry, kinds.REFUNDED, key, mark, moves=mark.amount, formerly=before, once=True)]
        case EntryKind.CHARGE_REFUND, _:
            return [_fact(entry, kinds.REFUND_REVERSED, f"refund:{name}:reversed", mark, moves=mark.amount)]
        case EntryKind.DISPUTE, _:
            dispute, _, number = name.partition("/")
            verb = f"funds_{state}"
            key = f"dispute:{dispute}:{verb}"
            formerly = tuple(f"{key}:{status}" for status in _DISPUTE_STATUSES)
            if number != "1":
                key, formerly = f"{key}/{number}", ()
            return [_fact(entry, kinds.DISPUTED, key, mark, moves=mark.amount, formerly=formerly)]
        case EntryKind.CREDIT_NOTE, _:
            kind = kinds.CREDITED if state == "issued" else kinds.CREDIT_VOIDED
            return [_fact(entry, kind, f"cn:{name}:{state}", mark)]
    return []


def _taken_back(entry: Entry) -> list[Fact]:
    """What two states say together: what the one moved, the other takes back."""
    seen, name = entry.seen, entry.id
    if entry.kind is EntryKind.INVOICE and "uncollectible" in seen and seen["uncollectible"].amount:
        part = seen["uncollectible"]
        for state, key in (("paid", f"pay.part_included:{name}"), ("voided", f"pay.part_in_void:{name}")):
            if state in seen:
                mark = Mark(part.amount, seen[state].second, data=part.data)
                return [_fact(entry, kinds.PARTIAL_INCLUDED, key, mark, moves=-part.amount)]
    ended = next((seen[state] for state in ("failed", "canceled") if state in seen), None)
    if entry.kind is EntryKind.REFUND and ended is not None and "succeeded" in seen:
        moved = seen["succeeded"].amount
        mark = Mark(moved, ended.second, data=ended.data)
        return [_fact(entry, kinds.REFUND_REVERSED, f"refund:{name}:reversed", mark, moves=-moved)]
    return []


def _fact(
    entry: Entry,
    kind: str,
    key: str,
    mark: Mark,
    *,
    moves: int | None = None,
    formerly: tuple[str, ...] = (),
    once: bool = False,
) -> Fact:
    money = Money(abs(mark.amount), entry.currency, exponent(entry.currency))
    data = without_nothing(
        {**mark.data, "money": money, "outside_minor": mark.outside or None, "moves_minor": moves}
    )
    return Fact(
        kind,
        key,
        mark.second,
        entry.source,
        data,
        formerly=formerly,
        formerly_is_of_its_second=once,
        livemode=entry.livemode,
        account=entry.account,
    )
