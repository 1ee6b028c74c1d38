"""Stripe's subscription statuses: what each gives access to, and which may follow which.

Source: docs.stripe.com/billing/subscriptions/overview, "Subscription statuses"; `paused` also through
`POST /v1/subscriptions/{id}/pause`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Protocol

# What Stripe tells within so long is not late: it makes an invoice an hour after a period ended.
LATE = timedelta(hours=1)
# As long as Stripe sends a webhook again.
UNHEARD = timedelta(days=3)
MONTH = timedelta(days=31)


class State(Protocol):
    """What access is read off; times in seconds since the epoch.

    Attributes:
        period_start, period_end: Of the item whose period ends first.
        collection: How invoices are treated while collection is paused; None while it is not.
        collection_resumes: Until when.
    """

    @property
    def status(self) -> str: ...
    @property
    def period_start(self) -> int | None: ...
    @property
    def period_end(self) -> int | None: ...
    @property
    def trial_end(self) -> int | None: ...
    @property
    def cancel_at(self) -> int | None: ...
    @property
    def cancel_at_period_end(self) -> bool: ...
    @property
    def collection(self) -> str | None: ...
    @property
    def collection_resumes(self) -> int | None: ...


class Access(StrEnum):
    """What a tenant may do by a subscription's status, best first."""

    GRANTED = "granted"
    GRACE = "grace"
    SUSPENDED = "suspended"
    NONE = "none"
    REVOKED = "revoked"
    UNKNOWN = "unknown"  # a status younger than this program


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


@dataclass(frozen=True, slots=True)
class Reading:
    """What a subscription gives at a moment, and why.

    Attributes:
        why: The rule that said so, one of those in `docs/access.md`.
        until: When it changes if nothing happens; None where nothing is foreseen.
        is_sure: Nothing is overdue: a subscription whose time has passed should have said what became of it.
    """

    access: Access
    why: str
    until: datetime | None = None
    is_sure: bool = True


def read_access(
    state: State,
    *,
    has_started: bool,
    past_due_since: int | None,
    grace: timedelta | None,
    now: datetime,
) -> Reading:
    """What a subscription gives now.

    Args:
        has_started: It was trialing or active at some time.
        past_due_since: The second at which it became past due, where that is known.
        grace: How long a past-due subscription stays usable; where None, to the end of the period it became
            past due in, and at most a month.
    """
    status = state.status
    if status in TERMINAL:
        return Reading(Access.REVOKED, "ended")
    end = _end(state)
    if status != "incomplete" and end is not None and now >= end:
        return Reading(Access.REVOKED, "cancel_at_passed", is_sure=False)
    if status in ("trialing", "active", "past_due") and _is_void(state, now):
        return Reading(Access.SUSPENDED, "collection_paused", _moment(state.collection_resumes))
    if status == "trialing":
        return _trial(state, end, now)
    if status == "active":
        return _period(state, end, now)
    if status == "past_due":
        return _past_due(state, past_due_since, grace, now)
    if not is_known(status):
        given = Access.GRANTED if has_started else Access.NONE
        return Reading(given, "unknown_status", is_sure=False)
    return Reading(access(status), status)


def _trial(state: State, end: datetime | None, now: datetime) -> Reading:
    over = _moment(state.trial_end)
    if over is not None and now >= over + LATE:
        return Reading(Access.SUSPENDED, "trial_over", is_sure=False)
    return Reading(Access.GRANTED, "trialing", _first(over, end))


def _period(state: State, end: datetime | None, now: datetime) -> Reading:
    over = _moment(state.period_end)
    why = "active" if state.collection is None else "active_without_collection"
    if over is None or now < over + LATE:
        return Reading(Access.GRANTED, why, end)
    if now < over + UNHEARD:
        return Reading(Access.GRACE, "renewal_not_heard_of", over + UNHEARD, is_sure=False)
    return Reading(Access.SUSPENDED, "period_over", is_sure=False)


def _past_due(state: State, since: int | None, grace: timedelta | None, now: datetime) -> Reading:
    began = _moment(since) or _moment(state.period_start)
    if began is None:
        return Reading(Access.GRACE, "past_due")
    if grace is not None:
        until = began + grace
    else:
        over = _moment(state.period_end)
        until = _first(began + MONTH, over if over is not None and over > began else None) or began + MONTH
    if now < until:
        return Reading(Access.GRACE, "past_due", until)
    return Reading(Access.SUSPENDED, "grace_over")


def _end(state: State) -> datetime | None:
    """When it was asked to end."""
    if state.cancel_at is not None:
        return _moment(state.cancel_at)
    return _moment(state.period_end) if state.cancel_at_period_end else None


def _is_void(state: State, now: datetime) -> bool:
    """Whether its invoices are void, which Stripe has for services that are not provided meanwhile."""
    resumes = _moment(state.collection_resumes)
    return state.collection == "void" and (resumes is None or now < resumes)


def _first(*moments: datetime | None) -> datetime | None:
    known = [moment for moment in moments if moment is not None]
    return min(known) if known else None


def _moment(second: int | None) -> datetime | None:
    if second is None:
        return None
    try:
        return datetime.fromtimestamp(second, UTC)
    except (ValueError, OverflowError, OSError):
        return None
