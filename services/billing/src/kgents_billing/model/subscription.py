"""A subscription's row and what an event, or the object itself, makes of it: the new row and its facts.

Facts are read off the event alone and never depend on what arrived before; what the row adds is only whether
the subscription is known to have started, without which its end is no fact.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from kgents_billing.model import order
from kgents_billing.model.access import STARTED, TERMINAL, Access, access, is_known, may_follow
from kgents_billing.model.facts import Fact
from kgents_billing.model.moved import moved_facts
from kgents_billing.model.order import Observation, Placed, Verdict, Window
from kgents_billing.model.ownership import Kind
from kgents_billing.model.projection import State, content_digest, digest, is_same
from kgents_billing.model.subscription_facts import ended, started, updated

# Stripe lets an unpaid new subscription expire after 23 hours.
EXPIRY_SECONDS = 86_400


class Subscription(msgspec.Struct, frozen=True, kw_only=True):
    """What we know of one subscription.

    Attributes:
        tenant: Whose it is now: who owned it at an event of the past, that event says.
        has_started: It was trialing or active at some time.
        observed_via: `event`, `fetch` or `reconcile`.
        needs_refetch: Its events do not tell (yet) which state is the last.
        last_access: What its last known status gave, for versions before.
        past_due_entered, past_due_left: The latest seconds at which an event says that it became past due,
            and that it no longer was.
        version: Raised by every write; a write names the version it was made from.
    """

    id: str
    tenant: str
    state: State
    window: Window
    has_started: bool = False
    observed_via: str = "event"
    needs_refetch: bool = False
    last_access: Access = Access.NONE
    past_due_entered: int | None = None
    past_due_left: int | None = None
    last_event: str | None = None
    version: int = 0


def past_due_since(row: Subscription) -> int | None:
    """When it became past due: as its events say; where the one that would is missing, its period's start."""
    if row.state.status != "past_due":
        return None
    entered, left = row.past_due_entered, row.past_due_left
    if entered is not None and (left is None or entered >= left):
        return entered
    known = [second for second in (row.state.period_start, left) if second is not None]
    return max(known) if known else None


@dataclass(frozen=True, slots=True)
class Ownership:
    """Whose a subscription is.

    Attributes:
        then: Whose it was at the event.
        now: Whose it is, where its last state does not say.
        until: Whose it was right before the event, where the state before it does not say.
        assigned: An operator's word, above everything a state says.
    """

    then: str
    now: str
    until: str | None = None
    assigned: str | None = None

    def of(self, state: State) -> str:
        """Whose it is while this state is the last."""
        return self.assigned or state.tenant or self.now


@dataclass(frozen=True, slots=True)
class Observed:
    """What an observation leads to.

    Attributes:
        wants_fetch: Only the object itself can tell.
        notes: What to count: `stale`, `ambiguous`, `illegal_transition`, `unknown_status`, `gap`.
    """

    row: Subscription
    facts: list[Fact] = field(default_factory=list)
    wants_fetch: bool = False
    notes: tuple[str, ...] = ()


def observe(
    row: Subscription | None, subscription_id: str, owned: Ownership, seen: Observation, *, source: str
) -> Observed:
    """The row after an event, and the event's facts."""
    placed = order.place(row.state if row else None, row.window if row else None, seen)
    notes = _notes(row, seen, placed)
    is_illegal = "illegal_transition" in notes
    new = _advance(row, subscription_id, owned, placed, seen, via="event")
    if is_illegal:
        new = msgspec.structs.replace(new, needs_refetch=True)
    return Observed(
        row=new,
        facts=[*_moved(new, owned, seen, source), *_facts(new, seen, source, owned.then)],
        wants_fetch=placed.verdict is Verdict.AMBIGUOUS or is_illegal,
        notes=notes,
    )


def observe_object(
    row: Subscription | None,
    subscription_id: str,
    owned: Ownership,
    state: State,
    *,
    second: int,
    source: str,
    via: str = "fetch",
    tells_change: bool = True,
) -> Observed:
    """The row after looking at the object itself.

    Args:
        second: When it was fetched, by Stripe's clock.
        tells_change: Give a fact for a difference to the row. Not where an event that is being handled, or
        one
            that is still to come, tells it.
    """
    if row is not None and row.state.status in TERMINAL and state.status not in TERMINAL:
        return Observed(row)  # what has ended does not come back: an answer older than the end
    seen = Observation("", second, state)
    new = _advance(row, subscription_id, owned, order.fetched(state, second), seen, via=via)
    facts = _lasting_facts(new, seen, source, new.tenant)
    is_different = row is not None and not is_same(row.state, state, tenant=row.tenant)
    if tells_change and row is not None:
        facts += _moved_between(row.tenant, new.tenant, new.id, state, second, source)
        is_different = is_different and content_digest(row.state) != content_digest(state)
    if tells_change and row is not None and is_different and state.status not in TERMINAL and new.has_started:
        facts.append(updated(new.id, row.state, state, second, source, new.tenant))
    return Observed(new, facts, notes=("drift",) if is_different else ())


def _advance(
    row: Subscription | None,
    subscription_id: str,
    owned: Ownership,
    placed: Placed,
    seen: Observation,
    *,
    via: str,
) -> Subscription:
    tenant = owned.of(placed.state)
    old = row or Subscription(id=subscription_id, tenant=tenant, state=placed.state, window=placed.window)
    given = access(placed.state.status)
    is_applied = placed.verdict is not Verdict.KEEP
    return msgspec.structs.replace(
        old,
        tenant=tenant,
        state=placed.state,
        window=placed.window,
        has_started=old.has_started or _shows_start(seen),
        observed_via=via if is_applied else old.observed_via,
        needs_refetch=old.needs_refetch if placed.is_certain is None else not placed.is_certain,
        last_access=old.last_access if given is Access.UNKNOWN else given,
        last_event=(seen.event or old.last_event) if is_applied else old.last_event,
        past_due_entered=_latest(old.past_due_entered, seen, seen.after, seen.before),
        past_due_left=_latest(old.past_due_left, seen, seen.before, seen.after),
    )


def _latest(known: int | None, seen: Observation, there: State | None, elsewhere: State | None) -> int | None:
    """The latest second at which it went from another status to past due, or back."""
    if there is None or there.status != "past_due":
        return known
    if elsewhere is None or elsewhere.status == "past_due":
        return known
    return seen.second if known is None else max(known, seen.second)


def _shows_start(seen: Observation) -> bool:
    if seen.after.status in STARTED or (seen.before is not None and seen.before.status in STARTED):
        return True
    # Unpaid it would have expired after 23 hours: what was cancelled later had started.
    created, ended = seen.after.created, seen.after.ended
    is_cancelled = seen.after.status == "canceled"
    return is_cancelled and created is not None and ended is not None and ended - created > EXPIRY_SECONDS


def _notes(row: Subscription | None, seen: Observation, placed: Placed) -> tuple[str, ...]:
    notes: list[str] = []
    if not is_known(seen.after.status):
        notes.append("unknown_status")
    if placed.verdict is Verdict.AMBIGUOUS:
        notes.append("ambiguous")
    # Read off the event alone: what came before in a row is no matter of what came before in time.
    if seen.before is not None and not may_follow(seen.before.status, seen.after.status):
        notes.append("illegal_transition")
    if row is None:
        return tuple(notes)
    if placed.verdict is Verdict.KEEP and digest(seen.after) != digest(row.state):
        notes.append("stale")
    is_applied = placed.verdict is Verdict.APPLY
    if is_applied and seen.before is not None and digest(seen.before) != digest(row.state):
        notes.append("gap")
    return tuple(notes)


def _moved(row: Subscription, owned: Ownership, seen: Observation, source: str) -> list[Fact]:
    """What a change of its metadata tells, which is no change where an operator said whose it is."""
    after, until = seen.after.tenant, (seen.before.tenant if seen.before else None) or owned.until
    if seen.before is None or after is None or until is None or owned.then != after:
        return []
    if seen.before.tenant == after:
        return []
    return _moved_between(until, after, row.id, seen.after, seen.second, source)


def _moved_between(before: str, after: str, name: str, state: State, second: int, source: str) -> list[Fact]:
    data = {"customer": state.customer, "status": state.status, "access": access(state.status).value}
    return moved_facts(Kind.SUBSCRIPTION, name, before, after, second=second, source=source, data=data)


def _facts(row: Subscription, seen: Observation, source: str, tenant: str) -> list[Fact]:
    found = _lasting_facts(row, seen, source, tenant)
    before, after = seen.before, seen.after
    is_start = (before is None or before.status not in STARTED) and after.status in ("trialing", "active")
    is_told_otherwise = is_start or seen.is_birth or after.status in TERMINAL
    is_before_start = after.status == "incomplete"
    if is_told_otherwise or is_before_start:
        return found
    if before is not None and content_digest(before) != content_digest(after):
        found.append(updated(row.id, before, after, seen.second, source, tenant))
    return found


def _lasting_facts(row: Subscription, seen: Observation, source: str, tenant: str) -> list[Fact]:
    """Start and end, whichever event shows them: one start for each tenant that has it, one end."""
    found: list[Fact] = []
    if _shows_start(seen):
        found.append(started(row.id, seen.after, seen.second, source, tenant))
    if row.has_started and row.state.status in TERMINAL:
        second = row.state.ended or row.window.last
        found.append(ended(row.id, row.state, second, source, row.tenant))
    return found
