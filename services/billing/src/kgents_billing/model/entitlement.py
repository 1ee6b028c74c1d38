"""What a tenant may use now, from all of its subscriptions; a pure reading of rows."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

import msgspec

from kgents_billing.model.access import ORDER, Access, Reading, read_access
from kgents_billing.model.subscription import Subscription, past_due_since


class EntitledItem(msgspec.Struct, frozen=True, kw_only=True):
    """A price the tenant is entitled to by one of its subscriptions."""

    price: str
    product: str | None
    quantity: int | None
    subscription: str


class Entitlements(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to "what may this tenant use?".

    Attributes:
        access: The best of its subscriptions' accesses; `none` without any.
        why: The rule that said so (`docs/access.md`); `no_subscription` without any.
        subscription: The one that gives it.
        until: When that access changes if nothing happens; None where nothing is foreseen.
        items: Of every subscription that gives access now.
        is_settled: Whether everything is known: False while a subscription's last state is being asked for,
            or one should have said by now what became of it.
    """

    tenant: str
    access: Access
    why: str
    subscription: str | None
    until: datetime | None
    items: tuple[EntitledItem, ...]
    is_settled: bool


def reading_of(row: Subscription, grace: timedelta | None, now: datetime) -> Reading:
    """What one subscription gives now, and why."""
    return read_access(
        row.state, has_started=row.has_started, past_due_since=past_due_since(row), grace=grace, now=now
    )


def best_first(
    rows: Sequence[Subscription], grace: timedelta | None, now: datetime
) -> list[tuple[Reading, Subscription]]:
    """Subscriptions with what they give: the best access first, then the newest, then by id."""
    found = [(reading_of(row, grace, now), row) for row in rows]
    return sorted(
        found, key=lambda one: (ORDER.index(one[0].access), -(one[1].state.created or 0), one[1].id)
    )


def entitlements(
    tenant: str, rows: Sequence[Subscription], grace: timedelta | None, now: datetime
) -> Entitlements:
    """What a tenant may use now."""
    found = best_first(rows, grace, now)
    giving = [row for reading, row in found if reading.access in (Access.GRANTED, Access.GRACE)]
    best, row = found[0] if found else (Reading(Access.NONE, "no_subscription"), None)
    return Entitlements(
        tenant=tenant,
        access=best.access,
        why=best.why,
        subscription=row.id if row else None,
        until=best.until,
        items=tuple(
            EntitledItem(price=item.price, product=item.product, quantity=item.quantity, subscription=row.id)
            for row in giving
            for item in row.state.items
        ),
        is_settled=all(reading.is_sure and not row.needs_refetch for reading, row in found),
    )
