"""Stripe's subscription statuses: what each gives access to, and which may follow which.

Source: docs.stripe.com/billing/subscriptions/overview, "Subscription statuses"; `paused` also through
`POST /v1/subscriptions/{id}/pause`.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import StrEnum


class Access(StrEnum):
    """What a tenant may do by a subscription's status, best first."""

    GRANTED = "granted"
    GRACE = "grace"
    SUSPENDED = "suspended"
    NONE = "none"
    REVOKED = "revoked"
    UNKNOWN = "unknown"  # a status younger than this program: access stays what it was


ORDER = tuple(Access)
TERMINAL = frozenset({"canceled", "incomplete_expired"})
# Having been in one of these, a subscription has started.
STARTED = frozenset({"trialing", "active", "past_due", "unpaid", "paused"})
_ACCESS = {
    "trialing": Access.GRANTED,
    "active": Access.GRANTED,
    "past_due": Access.GRACE,
    "incomplete": Access.NONE,
    "unpaid": Access.SUSPENDED,
    "paused": Access.SUSPENDED,
    "canceled": Access.REVOKED,
    "incomplete_expired": Access.REVOKED,
}
_NEXT = {
    "incomplete": {"trialing", "active", "incomplete_expired", "canceled"},
    "trialing": {"active", "past_due", "paused", "canceled", "incomplete", "incomplete_expired"},
    "active": {"past_due", "paused", "unpaid", "canceled", "trialing"},
    "past_due": {"active", "unpaid", "canceled", "paused"},
    "unpaid": {"active", "canceled"},
    "paused": {"active", "trialing", "past_due", "canceled"},
    "canceled": set[str](),
    "incomplete_expired": set[str](),
}


def access(status: str) -> Access:
    """What a status gives, before any grace runs out."""
    return _ACCESS.get(status, Access.UNKNOWN)


def is_known(status: str) -> bool:
    """Whether this program knows the status."""
    return status in _ACCESS


def may_follow(status: str, following: str) -> bool:
    """Whether Stripe lets a subscription go from one status to the next; unknown ones may do anything."""
    if status == following or not is_known(status) or not is_known(following):
        return True
    return following in _NEXT[status]


def effective(
    status: str,
    *,
    last_known: Access,
    period_start: int | None,
    period_end: int | None,
    grace: timedelta | None,
    now: datetime,
) -> Access:
    """What a status gives now.

    Args:
        last_known: What it gave before, which an unknown status keeps.
        grace: How long a past-due subscription stays usable from its period's start; to the period's end
            where None.
    """
    given = access(status)
    if given is Access.UNKNOWN:
        return last_known
    if given is Access.GRACE:
        end = grace_end(period_start, period_end, grace)
        return Access.GRACE if end is None or now < end else Access.SUSPENDED
    return given


def grace_end(period_start: int | None, period_end: int | None, grace: timedelta | None) -> datetime | None:
    """Until when a past-due subscription stays usable; None where the period is not known."""
    if grace is not None and period_start is not None:
        return datetime.fromtimestamp(period_start, UTC) + grace
    return None if period_end is None else datetime.fromtimestamp(period_end, UTC)
