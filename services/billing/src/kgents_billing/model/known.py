"""What a decision is made from beside its event: operators' choices, what is stored, what Stripe said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kgents_billing.model.ownership import Word, assigned_at, owner_at
from kgents_billing.model.projection import State
from kgents_billing.model.subscription import Subscription


@dataclass(frozen=True, slots=True)
class Options:
    """What operators may choose.

    Attributes:
        refunds_from_charges: Tell of refunds by `charge.refunded`, for endpoints without `refund.*`.
        tells_zero_payments: Also tell of paid invoices over nothing.
        livemode: Only events of this mode count; of both where None.
        accounts: Connected accounts whose events count, each with the tenant all of it is of, if one.
    """

    refunds_from_charges: bool = False
    tells_zero_payments: bool = False
    livemode: bool | None = None
    accounts: Mapping[str, str | None] = field(default_factory=dict)

    def takes(self, livemode: bool, account: str | None) -> bool:
        """Whether events of this mode and account count."""
        is_ours = account is None or account in self.accounts
        return is_ours and self.livemode in (None, livemode)


@dataclass(frozen=True, slots=True)
class Known:
    """What the store knows about an event's surroundings.

    Attributes:
        customer_tenant: Whose the customer seems to be, by what its checkouts and subscriptions taught.
        subscription_words: What is known of who owns the subscription.
        customer_words: The same of the customer.
        unknown: Tenants the event names that nobody opened.
        payment_tenant: Who paid, where the event is about a payment that is known.
    """

    is_applied: bool = False
    subscription: Subscription | None = None
    customer_tenant: str | None = None
    subscription_words: tuple[Word, ...] = ()
    customer_words: tuple[Word, ...] = ()
    unknown: frozenset[str] = frozenset()
    payment_tenant: str | None = None

    def assigned(self, second: int) -> str | None:
        """An operator's word, on the subscription before that on the customer."""
        return assigned_at(self.subscription_words, second) or assigned_at(self.customer_words, second)

    def owner(self, second: int) -> str | None:
        """Whose the event's thing was, where the event does not say it and no operator did."""
        return (
            owner_at(self.subscription_words, second)
            or owner_at(self.customer_words, second)
            or (self.subscription.tenant if self.subscription else None)
            or self.customer_tenant
        )


@dataclass(frozen=True, slots=True)
class Fetched:
    """The object itself, as Stripe gave it, and when by Stripe's clock."""

    state: State
    second: int
