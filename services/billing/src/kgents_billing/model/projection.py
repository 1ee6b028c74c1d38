"""What of a subscription matters to us, flat and without personal data, from any API version's shape.

Before 2025-03-31 ("basil") a subscription had one period; since then each item has its own, and the
subscription's is that of the item whose period ends first. Old values (`previous_attributes`) are laid over
the object to see what it was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec

from kgents_billing.model.event import Json, at, reference, second_of
from kgents_common import subjects
from kgents_common.errors import PermanentError

# The name in Stripe's metadata under which the account's owner says whose an object is.
TENANT_KEY = "tenant_id"


class Item(msgspec.Struct, frozen=True, order=True):
    """One thing subscribed to."""

    price: str
    product: str | None = None
    quantity: int | None = None


class State(msgspec.Struct, frozen=True, kw_only=True):
    """A subscription at a moment; times in seconds since the epoch.

    Attributes:
        period_start, period_end: Of the item whose period ends first.
        span_start, span_end: From the first item's beginning to the last one's end.
        tenant: Whose its metadata says it is; None where it says nothing usable.
    """

    status: str
    customer: str | None = None
    items: tuple[Item, ...] = ()
    currency: str | None = None
    period_start: int | None = None
    period_end: int | None = None
    trial_end: int | None = None
    cancel_at: int | None = None
    cancel_at_period_end: bool = False
    pause_reason: str | None = None
    collection: str | None = None
    latest_invoice: str | None = None
    started: int | None = None
    created: int | None = None
    ended: int | None = None
    end_reason: str | None = None
    tenant: str | None = None
    collection_resumes: int | None = None
    span_start: int | None = None
    span_end: int | None = None


class UnreadableObjectError(PermanentError):
    """An object that does not look like a subscription of any version we know."""


_ENCODER = msgspec.json.Encoder(order="deterministic")
# What a change is told of. Who pays and when it was born do not change with it; moves are told otherwise.
COMPARED = tuple(
    name
    for name in State.__struct_fields__
    if name
    not in ("created", "started", "customer", "tenant", "collection_resumes", "span_start", "span_end")
)


def project(subscription: Json) -> State:
    """What matters of a subscription object.

    Raises:
        UnreadableObjectError: No status, or items that are no items.
    """
    status = subscription.get("status")
    if _text(status) is None:
        raise UnreadableObjectError("a subscription without a status")
    entries = at(subscription, "items", "data")
    if entries is None:
        entries = []
    if not isinstance(entries, list):
        raise UnreadableObjectError("a subscription's items are not a list")
    items = tuple(sorted((_item(entry) for entry in entries), key=_item_order))
    periods = sorted(period for period in (_period(entry) for entry in entries) if period is not None)
    end, start = periods[0] if periods else _period(subscription) or (None, None)
    return State(
        status=str(status),
        customer=reference(subscription.get("customer")),
        items=items,
        currency=_text(subscription.get("currency")),
        period_start=start,
        period_end=end,
        trial_end=_second(subscription, "trial_end"),
        cancel_at=_second(subscription, "cancel_at"),
        cancel_at_period_end=subscription.get("cancel_at_period_end") is True,
        pause_reason=_text(at(subscription, "status_details", "paused", "type")),
        collection=_text(at(subscription, "pause_collection", "behavior")),
        latest_invoice=reference(subscription.get("latest_invoice")),
        started=_second(subscription, "start_date"),
        created=_second(subscription, "created"),
        ended=_second(subscription, "ended_at"),
        end_reason=_text(at(subscription, "cancellation_details", "reason")),
        tenant=named_tenant(subscription),
        collection_resumes=_second(at(subscription, "pause_collection"), "resumes_at"),
        span_start=min((start for _, start in periods), default=start),
        span_end=max((end for end, _ in periods), default=end),
    )


def project_before(subscription: Json, previous: Json | None) -> State | None:
    """What it was before the event; None where the event does not say, or says it in a way we cannot read."""
    if previous is None:
        return None
    try:
        return project(_overlay(subscription, previous))
    except UnreadableObjectError:
        return None


def named_tenant(thing: Json) -> str | None:
    """The tenant an object's own metadata names; None where it names none that could be one."""
    named = at(thing, "metadata", TENANT_KEY)
    return named if isinstance(named, str) and subjects.is_tenant(named) else None


def digest(state: State) -> str:
    """A short name of a state: equal states, equal names. Customer and times of birth do not count."""
    return _named(state, () if state.tenant is None else (state.tenant,))


def content_digest(state: State) -> str:
    """A short name of what a change is told of, whosever it is: facts' keys are made of it."""
    return _named(state, ())


def former_digest(state: State) -> str:
    """The content's name as the version before made it: its period was the span of all items."""
    if state.span_end is None:
        return content_digest(state)
    return content_digest(
        msgspec.structs.replace(state, period_start=state.span_start, period_end=state.span_end)
    )


def is_same(known: State, seen: State, *, tenant: str) -> bool:
    """Whether what is known (of a thing that is `tenant`'s) is what is seen.

    Rows of the version before do not know what metadata said, only whose the thing is.
    """
    if content_digest(known) not in (content_digest(seen), former_digest(seen)):
        return False
    return known.tenant == seen.tenant or (known.tenant is None and seen.tenant == tenant)


def _named(state: State, more: tuple[str, ...]) -> str:
    values = [*(getattr(state, name) for name in COMPARED), *more]
    return hashlib.blake2b(_ENCODER.encode(values), digest_size=9).hexdigest()


def changed_fields(before: State, after: State) -> list[str]:
    """Names of the fields that differ."""
    return [name for name in COMPARED if getattr(before, name) != getattr(after, name)]


def _overlay(current: Json, previous: Json) -> dict[str, Any]:
    """Old values over new ones: hashes hold only what changed, lists are whole."""
    merged = dict(current)
    for name, old in previous.items():
        new = merged.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            merged[name] = _overlay(new, old)
        elif isinstance(old, list) and isinstance(new, list):
            merged[name] = _overlay_list(new, old)
        else:
            merged[name] = old
    return merged


def _overlay_list(current: list[Any], previous: list[Any]) -> list[Any]:
    """An old list; where its members hold only what changed, they go over the new ones by place."""
    if len(current) == len(previous) and all(isinstance(o, Mapping) and "id" not in o for o in previous):
        return [
            _overlay(n, o) if isinstance(n, Mapping) else o for n, o in zip(current, previous, strict=True)
        ]
    return previous


def _item(entry: object) -> Item:
    price = reference(at(entry, "price")) or reference(at(entry, "plan"))
    if price is None:
        raise UnreadableObjectError("a subscription's item without a price")
    product = reference(at(entry, "price", "product")) or reference(at(entry, "plan", "product"))
    quantity = at(entry, "quantity")
    is_count = isinstance(quantity, int) and not isinstance(quantity, bool)
    return Item(price, product, quantity if is_count else None)


def _item_order(item: Item) -> tuple[str, str, int]:
    return item.price, item.product or "", item.quantity or 0


def _period(entry: object) -> tuple[int, int] | None:
    """When a period ends, and when it began; None where either is missing."""
    end, start = _second(entry, "current_period_end"), _second(entry, "current_period_start")
    return None if end is None or start is None else (end, start)


def _second(thing: object, name: str) -> int | None:
    return second_of(at(thing, name), name)


def _text(value: object) -> str | None:
    """A short enumeration's value; a text a person may have written is none."""
    if isinstance(value, str) and 0 < len(value) <= 64 and value.replace("_", "").isalnum():
        return value
    return None
