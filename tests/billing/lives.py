"""An in-memory billing to tell the stand-in's lives to, and what it must end with; no server."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kgents_billing.model import event as events
from kgents_billing.model.decision import Decision, Outcome, decide, settle
from kgents_billing.model.entries import Entry, merged
from kgents_billing.model.event import StripeEvent
from kgents_billing.model.facts import Fact, stamped
from kgents_billing.model.known import Fetched, Known, Options
from kgents_billing.model.money_facts import facts_of
from kgents_billing.model.ownership import Kind, Word
from kgents_billing.model.projection import digest, project
from kgents_billing.model.subscription import Ownership, Subscription, observe_object
from kgents_billing.model.tenant import Hints, Learned, hints
from kgents_devstack.stripe import START, Life, Told, new_id, random_life, snapshot


class Billing:
    """Billing without servers: the pure decisions over dictionaries.

    Args:
        fetch: Gives a subscription and Stripe's second, or None where no key is configured.
        looked_up: Whose Stripe says a customer or a charge is, where events do not.
    """

    def __init__(
        self,
        fetch: Callable[[str], tuple[Mapping[str, Any], int]] | None = None,
        options: Options | None = None,
        looked_up: str | None = None,
    ) -> None:
        self.fetch = fetch
        self.looked_up = looked_up
        self.options = options or Options()
        self.rows: dict[str, Subscription] = {}
        self.facts: dict[str, tuple[str, bytes]] = {}
        self.applied: set[str] = set()
        self.customers: dict[str, str] = {}
        self.references: dict[str, str] = {}
        self.words: list[Word] = []
        self.entries: dict[tuple[str, str], tuple[str, Entry]] = {}
        self.payments: dict[str, tuple[bool, str]] = {}
        self.payment_names: dict[str, str] = {}
        self.waiting: list[StripeEvent] = []
        self.fetches = 0
        self.told_twice = 0

    def take(self, body: bytes) -> Decision:
        """One delivery."""
        event = events.read(body)
        if event.id in self.applied:
            return Decision(Outcome.DUPLICATE)
        decision = decide(event, self._known(event), self.options, looked_up=self.looked_up)
        if decision.wants_subscription is not None and self.fetch is not None:
            decision = settle(decision, self._look(decision.wants_subscription), event)
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
                    row, row.id, Ownership(row.tenant, row.tenant), seen.state, second=seen.second,
                    source="/stripe/self", tells_change=False,
                )  # fmt: skip
                self._commit(
                    Decision(
                        Outcome.APPLIED, row.tenant, row=made.row, facts=stamped(made.facts, False, None)
                    )
                )

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
            subscription_words=self._words(Kind.SUBSCRIPTION, said.subscription),
            customer_words=self._words(Kind.CUSTOMER, customer),
            payment_tenant=self._payer(said),
        )

    def _payer(self, said: Hints) -> str | None:
        named = [self.payment_names[name] for name in said.references if name in self.payment_names]
        paid = [self.payments[name] for name in (said.payment, *named) if name in self.payments]
        return max(paid)[1] if paid else None

    def _words(self, kind: Kind, name: str | None) -> tuple[Word, ...]:
        return tuple(word for word in self.words if (word.kind, word.id) == (kind, name))

    def _look(self, name: str) -> Fetched:
        assert self.fetch is not None
        self.fetches += 1
        thing, second = self.fetch(name)
        return Fetched(project(thing), second)

    def _commit(self, decision: Decision) -> None:
        if decision.row is not None:
            self.rows[decision.row.id] = decision.row
        self.words += [word for word in decision.words if word not in self.words]
        self._tell(decision.facts, decision.tenant)
        if decision.payment is not None:
            known = self.payments.get(decision.payment.id)
            if known is None or (decision.payment.is_paid and not known[0]):
                self.payments[decision.payment.id] = (decision.payment.is_paid, decision.tenant or "")
        for name, payment in decision.payment_names:
            self.payment_names.setdefault(name, payment)
        for entry in decision.entries:
            key = (entry.kind.value, entry.id)
            owner, before = self.entries.get(key, (decision.tenant or "", None))
            self.entries[key] = (owner, merged(before, entry))
            self._tell(facts_of(self.entries[key][1]), owner)
        if decision.learned is not None:
            self._learn(decision.learned)

    def _tell(self, facts: Iterable[Fact], tenant: str | None) -> None:
        for fact in facts:
            owner = fact.tenant or tenant
            assert owner is not None
            told = (owner, fact.body(owner))
            if fact.key in self.facts:
                self.told_twice += self.facts[fact.key] != told
            else:
                self.facts[fact.key] = told

    def _learn(self, learned: Learned) -> None:
        if learned.tenant is not None:
            self.customers.setdefault(learned.customer, learned.tenant)
        for name in learned.references:
            self.references[name] = learned.customer


def reference(told: Iterable[Told], *, looked_up: str | None = None) -> Billing:
    """What a reader who gets every event once and in order ends with: the last object stands."""
    made = Billing(looked_up=looked_up)
    for one in told:
        event = events.read(one.body)
        made.take(one.body)
        assert event.object is not None
        row = made.rows.get(event.object_id or "")
        if row is not None and event.type.startswith("customer.subscription"):
            state = project(event.object)
            made.rows[row.id] = observe_object(
                row,
                row.id,
                Ownership(row.tenant, row.tenant),
                state,
                second=event.second,
                source="",
                tells_change=False,
            ).row
    return made


__all__ = ["START", "Billing", "Life", "Told", "new_id", "random_life", "reference", "snapshot"]
