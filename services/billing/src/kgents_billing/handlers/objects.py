"""Objects of Stripe's lists, told as the events that would have told them; facts are told once even so."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

import msgspec

from kgents_billing.sinks.store import Committed, Origin
from kgents_common.stripe_events import StripeEnvelope

Json = Mapping[str, Any]
# No stream holds these: they are numbered by nothing.
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LIST = "stripe"
PREFIX = "evt_listed_"


class Processes(Protocol):
    """The processor, as this needs it."""

    async def process(self, origin: Origin, *, again: bool) -> Committed:
        """Bring one event to its end."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A kind of object that money moves by.

    Attributes:
        path: Where Stripe lists it, newest first.
        told_as: The type of the event that tells an object as it is, or None and why not, as a reason.
    """

    name: str
    path: str
    told_as: Callable[[Json], tuple[str | None, str]]
    params: Mapping[str, Any] = field(default_factory=dict)


def _invoice(thing: Json) -> tuple[str | None, str]:
    kinds = {
        "paid": "invoice.paid",
        "uncollectible": "invoice.marked_uncollectible",
        "open": "invoice.finalized",
        "void": "invoice.voided",
    }
    status = str(thing.get("status"))
    return kinds.get(status), f"its status is {status}"


def _invoice_payment(thing: Json) -> tuple[str | None, str]:
    status = str(thing.get("status"))
    return ("invoice_payment.paid" if status == "paid" else None), f"its status is {status}"


def _checkout(thing: Json) -> tuple[str | None, str]:
    if thing.get("mode") != "payment":
        return None, "its subscription or setup tells"
    status = str(thing.get("payment_status"))
    return ("checkout.session.completed" if status == "paid" else None), f"its payment is {status}"


def _refund(_: Json) -> tuple[str | None, str]:
    return "refund.updated", ""


def _dispute(thing: Json) -> tuple[str | None, str]:
    has_moved = bool(thing.get("balance_transactions"))
    return ("charge.dispute.funds_withdrawn" if has_moved else None), "no money moved"


def _credit_note(thing: Json) -> tuple[str | None, str]:
    return ("credit_note.voided" if thing.get("status") == "void" else "credit_note.created"), ""


# What says who paid comes first: a refund then finds it.
LISTED = (
    Listed("invoice", "/v1/invoices", _invoice),
    Listed("checkout", "/v1/checkout/sessions", _checkout, {"status": "complete"}),
    Listed("invoice_payment", "/v1/invoice_payments", _invoice_payment, {"status": "paid"}),
    Listed("refund", "/v1/refunds", _refund),
    Listed("dispute", "/v1/disputes", _dispute),
    Listed("credit_note", "/v1/credit_notes", _credit_note),
)


def event_of(kind: str, thing: Json, account: str | None, *, livemode: bool) -> bytes:
    """The body of an event of this type about the object as it is.

    Its second is the object's birth: what an object says itself (when it was paid) stands above that.
    """
    state = thing.get("status") or thing.get("payment_status") or ""
    body: dict[str, Any] = {
        "id": f"{PREFIX}{thing['id']}_{state}",
        "object": "event",
        "type": kind,
        "created": thing.get("created") or 0,
        "livemode": livemode,
        "data": {"object": thing},
    }
    return msgspec.json.encode(body if account is None else {**body, "account": account})


async def tell_object(
    processor: Processes, kind: str, thing: Json, account: str | None, *, livemode: bool
) -> Committed:
    """Handle an object as the event that never came.

    Raises:
        PermanentError: It cannot be read.
        TransientError: Nothing is committed.
    """
    body = event_of(kind, thing, account, livemode=livemode)
    name = msgspec.json.decode(body, type=StripeEnvelope).subject
    return await processor.process(
        Origin(name, {}, body, EPOCH, _number(str(thing["id"])), EPOCH, LIST), again=True
    )


def _number(name: str) -> int:
    """Some number of its own, as a quarantine's place needs one."""
    return int.from_bytes(name.encode()[-7:], "big")
