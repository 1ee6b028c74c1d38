"""Whose an event is, asked at Stripe where events do not tell: by its customer, or by what paid it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import structlog

from kgents_billing.model.event import Json, StripeEvent, at, reference
from kgents_billing.model.known import Known
from kgents_billing.model.ownership import NOW
from kgents_billing.model.projection import State
from kgents_billing.model.tenant import KEY, Hints, family_of, hints
from kgents_billing.sinks.stripe_api import Answer, MissingObjectError
from kgents_common import subjects
from kgents_common.errors import KgentsError

# By the prefix of its id: what a refund or a dispute was paid with.
_PAID_BY = {"ch": "/v1/charges/", "py": "/v1/charges/", "pi": "/v1/payment_intents/"}
# What is known by its payment, not by its customer.
_OF_A_PAYMENT = ("refund", "dispute", "invoice_payment", "credit_note", "charge")

_log = structlog.get_logger()


class KnowsOwners(Protocol):
    """The store, as this needs it."""

    async def known(self, event_ids: list[str], said: Hints) -> Known:
        """What is known about an event's surroundings."""

    async def only_open(self, state: State) -> State:
        """The state, naming no tenant that nobody opened."""


class AsksStripe(Protocol):
    """Stripe's API, as this needs it."""

    async def get(self, path: str, params: Mapping[str, Any] | None = None) -> Answer:
        """One GET."""

    async def customer_metadata(self, customer_id: str) -> Mapping[str, Any]:
        """What the account's owner noted on a customer."""


class Payers:
    """Asks Stripe whose something is."""

    def __init__(self, store: KnowsOwners, stripe: AsksStripe | None) -> None:
        self._store = store
        self._stripe = stripe

    async def tenant(self, said: Hints, event: StripeEvent) -> str | None:
        """Whose the event is by what Stripe says; None where it does not say, or does not answer."""
        if self._stripe is None:
            return None
        try:
            if family_of(event.type) in _OF_A_PAYMENT:
                return await self._payer(said, event)
            return None if said.customer is None else await self._of_customer(said.customer)
        except KgentsError as error:
            _log.info("process.owner_not_asked", error=str(error))
            return None

    async def _payer(self, said: Hints, event: StripeEvent) -> str | None:
        if said.payment is not None:
            return await self._of_invoice(said.payment, event)
        for name in sorted(said.references, reverse=True):  # an intent before its charge
            kind = "payment_intent" if name.startswith("pi_") else "charge"
            asked = {"payment": {"type": kind, kind: name}, "limit": 1}
            for invoice in await self._listed("/v1/invoice_payments", asked):
                found = reference(invoice.get("invoice"))
                return None if found is None else await self._of_invoice(found, event)
            if kind == "payment_intent":
                for session in await self._listed(
                    "/v1/checkout/sessions", {"payment_intent": name, "limit": 1}
                ):
                    return await self._of_object("checkout.session.completed", session, event)
        for name in said.references:
            path = _PAID_BY.get(name.partition("_")[0])
            if path is None:
                continue
            paid = await self._get(path + name)
            intent = reference(at(paid, "payment_intent"))
            if intent is not None and intent not in said.references:
                return await self._payer(Hints(references=(intent,)), event)
            return await self._of_object("payment_intent.succeeded", paid, event) if paid else None
        return None

    async def _of_invoice(self, invoice: str, event: StripeEvent) -> str | None:
        known = await self._store.known([], Hints(payment=invoice))
        if known.payment_tenant is not None:
            return known.payment_tenant
        found = await self._get(f"/v1/invoices/{invoice}")
        return await self._of_object("invoice.paid", found, event) if found else None

    async def _of_object(self, kind: str, thing: Json, event: StripeEvent) -> str | None:
        """Whose an invoice, a checkout or a payment is: by its own word, its subscription, its customer."""
        second = at(thing, "status_transitions", "paid_at") or thing.get("created")
        second = second if isinstance(second, int) else event.second
        said = hints(
            StripeEvent("", kind, second, event.livemode, event.account, None, thing, related_id=None)
        )
        if said.tenant is not None:
            return await self._open(said.tenant)
        known = await self._store.known([], said)
        owner = known.assigned(second) or known.owner(second)
        if owner is not None or said.customer is None:
            return owner
        return await self._of_customer(said.customer)

    async def _of_customer(self, customer: str) -> str | None:
        assert self._stripe is not None  # noqa: S101 the caller looked
        known = await self._store.known([], Hints(customer=customer))
        owner = known.assigned(NOW) or known.owner(NOW)
        if owner is not None:
            return owner
        named = (await self._stripe.customer_metadata(customer)).get(KEY)
        return await self._open(named) if isinstance(named, str) and subjects.is_tenant(named) else None

    async def _open(self, named: str) -> str | None:
        return (await self._store.only_open(State(status="", tenant=named))).tenant

    async def _listed(self, path: str, params: Mapping[str, Any]) -> Sequence[Json]:
        found = at(await self._get(path, params), "data")
        return found if isinstance(found, list) else []

    async def _get(self, path: str, params: Mapping[str, Any] | None = None) -> Json | None:
        assert self._stripe is not None  # noqa: S101 the caller looked
        try:
            return (await self._stripe.get(path, params)).data
        except MissingObjectError:
            return None
