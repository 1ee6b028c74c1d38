"""What a tenant may use now, from all of its subscriptions; a pure reading of rows."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

import msgspec

from kgents_billing.model.access import ORDER, Access, effective, grace_end
from kgents_billing.model.subscription import Subscription


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
        until: When grace ends; None for another access.
        items: Of every subscription that gives access now.
        is_settled: Whether everything is known; False while a subscription's last state is being asked for.
    """

    tenant: str
    access: Access
    until: datetime | None
    items: tuple[EntitledItem, ...]
    is_settled: bool


def access_of(row: Subscription, grace: timedelta | None, now: datetime) -> Access:
    """What one subscription gives now."""
    state = row.state
    return effective(
        state.status,
        last_known=row.last_access,
        period_start=state.period_start,
        period_end=state.period_end,
        grace=grace,
        now=now,
    )


def best_first(
    rows: Sequence[Subscription], grace: timedelta | None, now: datetime
) -> list[tuple[Access, Subscription]]:
    """Subscriptions with their access: the best access first, then the newest, then by id."""
    found = [(access_of(row, grace, now), row) for row in rows]
    return sorted(found, key=lambda one: (ORDER.index(one[0]), -(one[1].state.created or 0), one[1].id))


def entitlements(
    tenant: str, rows: Sequence[Subscription], grace: timedelta | None, now: datetime
) -> Entitlements:
    """What a tenant may use now."""
    found = best_first(rows, grace, now)
    giving = [row for access, row in found if access in (Access.GRANTED, Access.GRACE)]
    best = found[0][0] if found else Access.NONE
    state = found[0][1].state if found else None
    return Entitlements(
        tenant=tenant,
        access=best,
        until=grace_end(state.period_start, state.period_end, grace)
        if state is not None and best is Access.GRACE
        else None,
        items=tuple(
            EntitledItem(price=item.price, product=item.product, quantity=item.quantity, subscription=row.id)
            for row in giving
            for item in row.state.items
        ),
        is_settled=not any(row.needs_refetch for row in rows),
    )
