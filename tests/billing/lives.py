"""Subscriptions' lives as Stripe tells them, and an in-memory billing to tell them to; no server."""

from __future__ import annotations

import copy
import itertools
import json
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kgents_billing.model import event as events
from kgents_billing.model.decision import Decision, Fetched, Known, Options, Outcome, decide, settle
from kgents_billing.model.event import StripeEvent
from kgents_billing.model.order import Verdict
from kgents_billing.model.projection import digest, project
from kgents_billing.model.subscription import Subscription, observe_object
from kgents_billing.model.tenant import Learned, hints

START = 1_790_000_000
MONTH = 2_678_400
_ids = itertools.count(1)

NEXT = {
    "incomplete": ("active", "trialing", "incomplete_expired"),
    "trialing": ("active", "past_due", "paused", "canceled"),
    "active": ("past_due", "paused", "canceled"),
    "past_due": ("active", "unpaid", "canceled"),
    "unpaid": ("active", "canceled"),
    "paused": ("active",),
}


def new_id(prefix: str) -> str:
    """An id nobody else has."""
    return f"{prefix}_{next(_ids):06d}"


def subscription_object(name: str, *, tenant: str | None = "acme", basil: bool = True) -> dict[str, Any]:
    """A subscription of the current shape, or of the one before 2025-03-31."""
    item: dict[str, Any] = {
        "id": f"si_{name}",
        "object": "subscription_item",
        "price": {"id": "price_a", "object": "price", "product": "prod_a", "currency": "usd"},
        "quantity": 1,
    }
    period = {"current_period_start": START, "current_period_end": START + MONTH}
    made: dict[str, Any] = {
        "id": name,
        "object": "subscription",
        "status": "incomplete",
        "customer": f"cus_{name}",
        "currency": "usd",
        "created": START,
        "start_date": START,
        "cancel_at": None,
        "cancel_at_period_end": False,
        "cancellation_details": {"comment": None, "feedback": None, "reason": None},
        "ended_at": None,
        "trial_end": None,
        "pause_collection": None,
        "latest_invoice": "in_0",
        "metadata": {"tenant_id": tenant} if tenant else {},
        "items": {"object": "list", "data": [item], "has_more": False},
    }
    if basil:
        item |= period
    else:
        made |= period
    return made


@dataclass
class Told:
    """One event of a life: what Stripe would send, and when it happened."""

    at: float
    body: bytes

    @property
    def event(self) -> StripeEvent:
        return events.read(self.body)


def snapshot(
    kind: str,
    thing: Mapping[str, Any],
    *,
    second: int,
    previous: Mapping[str, Any] | None = None,
    name: str | None = None,
    version: str = "2026-10-28.endive",
    **more: Any,
) -> bytes:
    """A snapshot event's body."""
    data: dict[str, Any] = {"object": copy.deepcopy(dict(thing))}
    if previous is not None:
        data["previous_attributes"] = copy.deepcopy(dict(previous))
    return json.dumps(
        {
            "id": name or new_id("evt"),
            "object": "event",
            "api_version": version,
            "created": second,
            "type": kind,
            "livemode": False,
            "pending_webhooks": 1,
            "request": {"id": None, "idempotency_key": None},
            "data": data,
            **more,
        }
    ).encode()


class Life:
    """A subscription at Stripe: every change makes an event."""

    def __init__(self, *, at: float = START, tenant: str | None = "acme", basil: bool = True) -> None:
        self.name = new_id("sub")
        self.basil = basil
        self.at = at
        self.now = subscription_object(self.name, tenant=tenant, basil=basil)
        self.now["created"] = self.now["start_date"] = int(at)
        self.history: list[tuple[float, dict[str, Any]]] = []
        self.told: list[Told] = []
        self._tell("customer.subscription.created", None)

    def wait(self, seconds: float) -> Life:
        self.at += seconds
        return self

    def change(self, **fields: Any) -> Life:
        """Change top-level fields."""
        previous = {name: copy.deepcopy(self.now.get(name)) for name in fields}
        self.now.update(fields)
        return self._tell("customer.subscription.updated", previous)

    def become(self, status: str) -> Life:
        if status in ("canceled", "incomplete_expired"):
            return self.end(status)
        return self.change(status=status, latest_invoice=f"in_{len(self.told)}")

    def change_item(self, **fields: Any) -> Life:
        """Change the item: Stripe says the whole list as it was."""
        previous = {"items": copy.deepcopy(self.now["items"])}
        self.now["items"]["data"][0].update(fields)
        return self._tell("customer.subscription.updated", previous)

    def renew(self) -> Life:
        place = self.now["items"]["data"][0] if self.basil else self.now
        start, end = place["current_period_end"], place["current_period_end"] + MONTH
        invoice = {"latest_invoice": f"in_{len(self.told)}"}
        if not self.basil:
            return self.change(current_period_start=start, current_period_end=end, **invoice)
        previous = {
            "items": copy.deepcopy(self.now["items"]),
            "latest_invoice": self.now["latest_invoice"],
        }
        place |= {"current_period_start": start, "current_period_end": end}
        self.now |= invoice
        return self._tell("customer.subscription.updated", previous)

    def end(self, status: str = "canceled") -> Life:
        self.now |= {"status": status, "ended_at": int(self.at)}
        self.now["cancellation_details"]["reason"] = "cancellation_requested"
        kind = "customer.subscription.deleted" if status == "canceled" else "customer.subscription.updated"
        return self._tell(kind, None if status == "canceled" else {"status": "incomplete", "ended_at": None})

    def as_of(self, at: float) -> dict[str, Any]:
        """The object as a GET answers at that time."""
        return [thing for when, thing in self.history if when <= at][-1]

    def _tell(self, kind: str, previous: dict[str, Any] | None) -> Life:
        self.history.append((self.at, copy.deepcopy(self.now)))
        self.told.append(Told(self.at, snapshot(kind, self.now, second=int(self.at), previous=previous)))
        return self


def random_life(roll: random.Random, same_second: float = 0.5, longest: int = 9) -> Life:
    """A legal life with few distinct values, so that states come back."""
    life = Life(basil=roll.random() < 0.7, at=START + roll.random())
    for _ in range(roll.randrange(1, longest)):
        if roll.random() < same_second:
            life.wait(roll.uniform(0.001, 0.3))
        else:
            life.wait(roll.choice((1.1, 2.5, 60, 86_400)))
        status = life.now["status"]
        options: list[Callable[[], Life]] = [
            lambda: life.change(cancel_at_period_end=not life.now["cancel_at_period_end"]),
            lambda: life.change_item(quantity=1 + life.now["items"]["data"][0]["quantity"] % 3),
            lambda: life.change(metadata={**life.now["metadata"], "note": str(roll.random())}),
            life.renew,
        ]
        options += [lambda s=s: life.become(s) for s in NEXT.get(status, ())]  # type: ignore[misc]
        roll.choice(options)()
        if life.now["status"] in ("canceled", "incomplete_expired"):
            break
    return life


class Billing:
    """Billing without servers: the pure decisions over dictionaries.

    Args:
        fetch: Gives a subscription and Stripe's second, or None where no key is configured.
    """

    def __init__(
        self,
        fetch: Callable[[str], tuple[Mapping[str, Any], int]] | None = None,
        options: Options | None = None,
    ) -> None:
        self.fetch = fetch
        self.options = options or Options()
        self.rows: dict[str, Subscription] = {}
        self.facts: dict[str, tuple[str, bytes]] = {}
        self.applied: set[str] = set()
        self.customers: dict[str, str] = {}
        self.references: dict[str, str] = {}
        self.waiting: list[StripeEvent] = []
        self.fetches = 0
        self.told_twice = 0

    def take(self, body: bytes) -> Decision:
        """One delivery."""
        event = events.read(body)
        if event.id in self.applied:
            return Decision(Outcome.DUPLICATE)
        decision = decide(event, self._known(event), self.options)
        if decision.wants_subscription is not None and self.fetch is not None:
            decision = settle(decision, self._look(decision.wants_subscription), event.source)
        if decision.outcome is Outcome.QUARANTINED:
            self.waiting.append(event)
            return decision
        self.applied.add(event.id)
        self._commit(decision)
        return decision

    def look_again(self) -> None:
        """Fetch what is marked."""
        for row in list(self.rows.values()):
            if row.needs_refetch and self.fetch is not None:
                seen = self._look(row.id)
                made = observe_object(
                    row, row.id, row.tenant, seen.state, second=seen.second, source="/stripe/self",
                    tells_change=False,
                )  # fmt: skip
                self._commit(Decision(Outcome.APPLIED, row.tenant, row=made.row, facts=made.facts))

    def states(self) -> dict[str, str]:
        return {name: digest(row.state) for name, row in self.rows.items()}

    def _known(self, event: StripeEvent) -> Known:
        said = hints(event)
        customer = said.customer or next(
            (self.references[r] for r in said.references if r in self.references), None
        )
        return Known(
            subscription=self.rows.get(said.subscription or ""),
            customer_tenant=self.customers.get(customer or ""),
        )

    def _look(self, name: str) -> Fetched:
        assert self.fetch is not None
        self.fetches += 1
        thing, second = self.fetch(name)
        return Fetched(project(thing), second)

    def _commit(self, decision: Decision) -> None:
        if decision.row is not None:
            self.rows[decision.row.id] = decision.row
        for fact in decision.facts:
            assert decision.tenant is not None
            told = (decision.tenant, fact.body(decision.tenant))
            if fact.key in self.facts:
                self.told_twice += self.facts[fact.key] != told
            else:
                self.facts[fact.key] = told
        if decision.learned is not None:
            self._learn(decision.learned)

    def _learn(self, learned: Learned) -> None:
        if learned.tenant is not None:
            self.customers.setdefault(learned.customer, learned.tenant)
        for name in learned.references:
            self.references[name] = learned.customer


def reference(told: Iterable[Told]) -> Billing:
    """What a reader who gets every event once and in order ends with: the last object stands."""
    made = Billing()
    for one in told:
        event = one.event
        made.take(one.body)
        assert event.object is not None
        row = made.rows.get(event.object_id or "")
        if row is not None and event.type.startswith("customer.subscription"):
            state = project(event.object)
            made.rows[row.id] = observe_object(
                row, row.id, row.tenant, state, second=event.second, source="", tells_change=False
            ).row
    return made


__all__ = ["START", "Billing", "Life", "Told", "Verdict", "new_id", "random_life", "reference", "snapshot"]
