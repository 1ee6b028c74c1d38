"""Facts of a subscription: it began, it changed, its trial ends, it is over; it decides of none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from kgents_billing.model import facts as kinds
from kgents_billing.model.access import access
from kgents_billing.model.facts import Fact, without_nothing
from kgents_billing.model.projection import State, changed_fields, content_digest, former_digest


def started(name: str, state: State, second: int, source: str, tenant: str) -> Fact:
    """It is a tenant's, and trialing, active or later."""
    return Fact(
        type=kinds.STARTED,
        key=f"sub.started:{name}:{tenant}",
        formerly=(f"sub.started:{name}",),
        tenant=tenant,
        second=state.created or state.started or second,
        source=source,
        data=without_nothing(
            {
                "subscription": name,
                "customer": state.customer,
                "started_at": state.started or state.created,
                "currency": state.currency,
            }
        ),
    )


def ended(name: str, state: State, second: int, source: str, tenant: str) -> Fact:
    """It is over."""
    return Fact(
        type=kinds.ENDED,
        key=f"sub.ended:{name}",
        tenant=tenant,
        second=second,
        source=source,
        data=without_nothing(
            {
                "subscription": name,
                "customer": state.customer,
                "status": state.status,
                "reason": state.end_reason,
                "ended_at": second,
                "access": access(state.status).value,
            }
        ),
    )


def updated(subscription_id: str, before: State, after: State, second: int, source: str, tenant: str) -> Fact:
    """What matters of it changed."""
    names, name = changed_fields(before, after), f"sub.updated:{subscription_id}:{second}"
    step = f"{name}:{content_digest(before)[:12]}:{content_digest(after)[:12]}"
    return Fact(
        type=kinds.UPDATED,
        # Named by what changed and when, not by the event: under two ids it is still one change.
        key=f"{step}:{tenant}",
        formerly=(step, f"{name}:{former_digest(before)[:12]}:{former_digest(after)[:12]}"),
        tenant=tenant,
        second=second,
        source=source,
        data=without_nothing(
            {
                "subscription": subscription_id,
                "customer": after.customer,
                "changed": names,
                "from": _values(before, names),
                "to": _values(after, names),
                "status": after.status,
                "access": access(after.status).value,
            }
        ),
    )


def _values(state: State, names: Sequence[str]) -> dict[str, Any]:
    return {name: msgspec.to_builtins(getattr(state, name)) for name in names}


def trial_ending(subscription_id: str, state: State, second: int, source: str) -> Fact:
    """A trial ends soon: said, but no change of state."""
    return Fact(
        type=kinds.UPDATED,
        key=f"sub.trial_end:{subscription_id}:{state.trial_end}",
        second=second,
        source=source,
        data=without_nothing(
            {
                "subscription": subscription_id,
                "customer": state.customer,
                "reason": "trial_ending",
                "trial_end": state.trial_end,
                "status": state.status,
                "access": access(state.status).value,
            }
        ),
    )
