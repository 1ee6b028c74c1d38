"""Whose event it is: hints in the object first, then what earlier events taught; it asks nobody.

Metadata is written by the account's owner and is believed. `client_reference_id` may come from a payment
link's URL, so whoever pays may choose it: it never replaces what metadata said.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum

from kgents_billing.model.event import Json, StripeEvent, at, reference
from kgents_billing.model.ownership import Kind, Word
from kgents_billing.model.payments import invoice_subscription
from kgents_billing.model.projection import TENANT_KEY, named_tenant
from kgents_common import subjects

KEY = TENANT_KEY


class Trust(IntEnum):
    """How much a customer's tenant is believed; a higher word replaces a lower one."""

    CHECKOUT = 1
    SUBSCRIPTION = 2
    CUSTOMER = 3


@dataclass(frozen=True, slots=True)
class Hints:
    """What an event says about whose it is.

    Attributes:
        tenants: Valid tenants named in the object, the most telling first.
        customer: By whom a tenant may be known.
        subscription: By which a tenant may be known.
        references: Charges and payment intents by which a payment, or a customer, may be known.
        payment: The invoice or checkout it is about.
        invalid: A tenant was named that cannot be one.
        before: The tenant the object named until this event.
    """

    tenants: tuple[str, ...] = ()
    customer: str | None = None
    subscription: str | None = None
    references: tuple[str, ...] = ()
    invalid: bool = False
    before: str | None = None
    payment: str | None = None

    @property
    def tenant(self) -> str | None:
        """The tenant the object itself names."""
        return self.tenants[0] if self.tenants else None


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose an event is, as far as anybody knows."""

    customer: str | None = None
    tenant: str | None = None


@dataclass(frozen=True, slots=True)
class Learned:
    """What an event teaches about customers.

    Attributes:
        tenant: With `trust`, the customer's tenant.
        references: Charges and payment intents of this customer.
    """

    customer: str
    tenant: str | None = None
    trust: Trust = Trust.CHECKOUT
    references: tuple[str, ...] = ()
    is_deleted: bool = False


def hints(event: StripeEvent) -> Hints:
    """What an event says about whose it is."""
    thing = event.object
    if thing is None:
        is_subscription = (event.related_type or "").endswith("subscription")
        return Hints(subscription=event.related_id if is_subscription else None)
    family = family_of(event.type)
    named: list[object] = [at(thing, "metadata", KEY)]
    subscription: str | None = None
    if family == "subscription":
        subscription = event.object_id
    elif family == "invoice":
        named += [
            at(thing, "parent", "subscription_details", "metadata", KEY),
            at(thing, "subscription_details", "metadata", KEY),
        ]
        subscription = invoice_subscription(thing)
    elif family == "checkout":
        named.append(thing.get("client_reference_id"))
        subscription = reference(thing.get("subscription"))
    given = [value for value in named if value is not None and value != ""]
    valid = tuple(value for value in given if isinstance(value, str) and subjects.is_tenant(value))
    return Hints(
        tenants=valid,
        customer=event.object_id if family == "customer" else reference(thing.get("customer")),
        subscription=subscription,
        references=tuple(_references(thing, event.object_id if family == "charge" else None)),
        invalid=bool(given) and not valid,
        before=_named_before(event),
        payment=_payment(event, family),
    )


def learned(event: StripeEvent, tenant: str | None) -> Learned | None:
    """What an event teaches, given the tenant it was found to be of; None for nothing."""
    thing = event.object
    if thing is None:
        return None
    said = hints(event)
    if said.customer is None:
        return None
    family = family_of(event.type)
    own = at(thing, "metadata", KEY)
    if family == "customer":
        is_good = isinstance(own, str) and subjects.is_tenant(own)
        is_deleted = event.type == "customer.deleted"
        if not is_good and not is_deleted:
            return None
        return Learned(said.customer, own if is_good else None, Trust.CUSTOMER, is_deleted=is_deleted)
    if family == "checkout":
        is_owners = isinstance(own, str) and own == said.tenant
        trust = Trust.SUBSCRIPTION if is_owners else Trust.CHECKOUT
        return Learned(said.customer, said.tenant, trust, said.references)
    # A subscription's or an invoice's own word; where it has none, there is nothing to learn but references.
    return Learned(said.customer, said.tenant if tenant else None, Trust.SUBSCRIPTION, said.references)


def words(event: StripeEvent) -> list[Word]:
    """What an event says of who owns its object, where that is a subscription or a customer.

    Only an object's own metadata counts. Where it stayed the same, the word says no more than whose the
    object was then.
    """
    family = family_of(event.type)
    if event.object is None or event.object_id is None or family not in (Kind.SUBSCRIPTION, Kind.CUSTOMER):
        return []
    after, before = named_tenant(event.object), _named_before(event)
    if after is None:
        return []
    return [Word(Kind(family), event.object_id, event.second, after, before or "")]


def _named_before(event: StripeEvent) -> str | None:
    """The tenant the object's metadata named until this event; None where it was this one, or none."""
    changed = at(event.previous, "metadata")
    if not isinstance(changed, Mapping) or KEY not in changed:
        return None
    return named_tenant({"metadata": changed})


def _payment(event: StripeEvent, family: str) -> str | None:
    """The invoice or checkout an event is about; a checkout that makes an invoice is about that."""
    assert event.object is not None  # noqa: S101 the caller looked
    if family == "invoice":
        return event.object_id
    if family in ("invoice_payment", "credit_note"):
        return reference(event.object.get("invoice"))
    if family == "checkout":
        return reference(event.object.get("invoice")) or event.object_id
    return None


def family_of(event_type: str) -> str:
    """The kind of object an event type is about."""
    if event_type.startswith("customer.subscription."):
        return "subscription"
    if event_type.startswith("checkout.session."):
        return "checkout"
    if event_type.startswith("charge.dispute."):
        return "dispute"
    if event_type.startswith("charge.refund."):
        return "refund"
    if event_type in ("customer.created", "customer.updated", "customer.deleted"):
        return "customer"
    return event_type.partition(".")[0]


def _references(thing: Json, own_id: str | None) -> Iterable[str]:
    """Charges and payment intents an object names: a refund or dispute may know no more than one of them."""
    found = [own_id, reference(thing.get("charge")), reference(thing.get("payment_intent"))]
    found += [reference(at(thing, "payment", name)) for name in ("payment_intent", "charge")]
    payments = at(thing, "payments", "data")
    for entry in payments if isinstance(payments, list) else []:
        found += [reference(at(entry, "payment", name)) for name in ("payment_intent", "charge")]
    return dict.fromkeys(name for name in found if name)
