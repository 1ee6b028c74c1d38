"""What one event says of money that goes back: refunds, disputes, credit notes. No state at all."""

from __future__ import annotations

from typing import Any

from kgents_billing.model import facts as kinds
from kgents_billing.model.amounts import MAX_MINOR, MalformedAmountError, amount, optional_amount
from kgents_billing.model.entries import RANKS, Entry, EntryKind, Mark
from kgents_billing.model.event import Json, StripeEvent, at, reference, second_of
from kgents_billing.model.facts import without_nothing
from kgents_billing.model.payments import Said, entry, fact, word
from kgents_billing.model.projection import UnreadableObjectError


def refund_said(event: StripeEvent, refund: Json, *, charges_tell: bool = False) -> Said:
    """A refund is in a state; only where it succeeded the customer has the money.

    Args:
        charges_tell: Charges tell of refunds: of them only what was taken back is told here.

    Raises:
        MalformedAmountError: Its amount is none.
    """
    name, status = event.object_id, word(refund.get("status"))
    if name is None:
        return Said()
    if status not in RANKS[EntryKind.REFUND]:
        raise UnreadableObjectError("refund: its status is none that is known")
    of = _paid_with(refund)
    data = {
        "refund": name,
        "status": status,
        "charge": reference(refund.get("charge")),
        "payment_intent": reference(refund.get("payment_intent")),
        "reason": word(refund.get("reason")),
    }
    whole = amount(refund, "amount").amount_minor
    if charges_tell:
        if status not in ("failed", "canceled"):
            return Said()
        back = Mark(whole, event.second, data=without_nothing(data))
        return Said([], [entry(event, EntryKind.CHARGE_REFUND, name, of or name, refund, "failed", back)])
    mark = Mark(-whole, event.second, data=without_nothing(data))
    return Said([], [entry(event, EntryKind.REFUND, name, of or name, refund, status, mark)])


def charge_refund_said(event: StripeEvent, charge: Json) -> Said:
    """A refund told by its charge, for endpoints without `refund.*`: what was added to what is refunded.

    Raises:
        MalformedAmountError: Its amounts are none.
    """
    name = event.object_id
    if name is None:
        return Said()
    total = amount(charge, "amount_refunded").amount_minor
    before = at(event.previous, "amount_refunded")
    part = total - before if isinstance(before, int) and before <= total else total
    data = {
        "charge": name,
        "customer": reference(charge.get("customer")),
        "status": "succeeded",
        "cumulative_minor": total,
    }
    # A sum may come back, once a refund failed: the second tells them apart.
    mark = Mark(-part, event.second, data=without_nothing(data))
    of = reference(charge.get("payment_intent")) or name
    own = f"{name}:{total}:{event.second}"
    return Said([], [entry(event, EntryKind.CHARGE_REFUND, own, of, charge, "succeeded", mark)])


def dispute_said(event: StripeEvent, dispute: Json) -> Said:
    """A dispute is opened, changes, is closed; and each time the bank takes money, or gives it back.

    Raises:
        MalformedAmountError: Its amount is none.
    """
    name, status = event.object_id, word(dispute.get("status"))
    if name is None:
        return Said()
    if status is None:
        raise UnreadableObjectError("dispute: its status is none")
    happening = event.type.removeprefix("charge.dispute.")
    disputed = amount(dispute, "amount")
    common = {
        "dispute": name,
        "charge": reference(dispute.get("charge")),
        "payment_intent": reference(dispute.get("payment_intent")),
        "reason": word(dispute.get("reason")),
    }
    entries = _movements(event, dispute, name, common, happening, disputed.amount_minor)
    if happening in ("funds_withdrawn", "funds_reinstated"):
        return Said([], entries)
    details = {**common, "happening": happening, "status": status, "disputed": disputed}
    key = f"dispute:{name}:{happening}:{status}"
    return Said([fact(event, kinds.DISPUTED, key, details)], entries)


def credit_note_said(event: StripeEvent, note: Json) -> Said:
    """A credit note is issued or void; money moves by the refund it may have made, which tells itself.

    Raises:
        MalformedAmountError: Its amounts are none.
    """
    name = event.object_id
    if name is None:
        return Said()
    total = amount(note, "amount").amount_minor
    data = {
        "credit_note": name,
        "invoice": reference(note.get("invoice")),
        "customer": reference(note.get("customer")),
        "reason": word(note.get("reason")),
        "before_payment_minor": optional_amount(note, "pre_payment_amount"),
        "after_payment_minor": optional_amount(note, "post_payment_amount"),
        "outside_stripe_minor": optional_amount(note, "out_of_band_amount"),
    }
    state = "void" if event.type == "credit_note.voided" else "issued"
    mark = Mark(-total, event.second, data=without_nothing(data))
    of = reference(note.get("invoice")) or name
    return Said([], [entry(event, EntryKind.CREDIT_NOTE, name, of, note, state, mark)])


def _movements(
    event: StripeEvent, dispute: Json, name: str, common: dict[str, Any], happening: str, whole: int
) -> list[Entry]:
    """Money taken and given back so far: by the balance's own transactions, where the event has them."""
    of = _paid_with(dispute) or name
    taken: list[tuple[str, int, int]] = []
    for one in dispute.get("balance_transactions") or []:
        moved, second = at(one, "amount"), second_of(at(one, "created"), "created")
        if isinstance(moved, bool) or not isinstance(moved, int) or abs(moved) > MAX_MINOR:
            raise MalformedAmountError("dispute.balance_transactions.amount must be a whole number")
        when = event.second if second is None else second
        if str(at(one, "currency")).lower() != str(dispute.get("currency")).lower():
            # The balance is kept in another currency than was paid in: what was disputed is what moved.
            moved = -whole if moved < 0 else whole
        taken.append(("withdrawn" if moved < 0 else "reinstated", moved, when))
    if not taken and happening in ("funds_withdrawn", "funds_reinstated"):
        state = happening.removeprefix("funds_")
        taken = [(state, -whole if state == "withdrawn" else whole, event.second)]
    found, counts = [], {"withdrawn": 0, "reinstated": 0}
    for state, moved, when in sorted(taken, key=lambda one: one[2]):
        counts[state] += 1
        data = without_nothing({**common, "happening": f"funds_{state}"})
        own = f"{name}/{counts[state]}"
        found.append(entry(event, EntryKind.DISPUTE, own, of, dispute, state, Mark(moved, when, data=data)))
    return found


def _paid_with(thing: Json) -> str | None:
    """The payment that is given back: by its intent, where there is one."""
    return reference(thing.get("payment_intent")) or reference(thing.get("charge"))
