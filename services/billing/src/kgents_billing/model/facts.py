"""A fact: what billing tells the rest of the system, once, under a name made of what happened; it stores
none.

On the wire a fact is a CloudEvent 1.0 on `events.billing.<tenant>.<type>`. Its id is the semantic key, which
is also the `Nats-Msg-Id`: two Stripe events about one happening give one fact. Data holds ids, amounts in
minor units with their currency, enumerations and times in seconds; nothing personal, no URL, no free text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import msgspec

from kgents_billing.model.money import Money
from kgents_common import subjects

STARTED = "subscription.started"
UPDATED = "subscription.updated"
ENDED = "subscription.ended"
SUBSCRIPTION_MOVED = "subscription.moved"
CUSTOMER_MOVED = "customer.moved"
PAID = "payment.success"
PARTIAL = "payment.partial"
PARTIAL_INCLUDED = "payment.partial_included"
FAILED = "payment.failed"
ACTION_REQUIRED = "payment.action_required"
REFUNDED = "payment.refunded"
REFUND_PENDING = "payment.refund_pending"
REFUND_FAILED = "payment.refund_failed"
REFUND_REVERSED = "payment.refund_reversed"
DISPUTED = "payment.disputed"
PAYMENT_APPLIED = "invoice.payment_applied"
CREDITED = "invoice.credited"
CREDIT_VOIDED = "invoice.credit_voided"
CUSTOMER_DELETED = "customer.deleted"

_ENCODER = msgspec.json.Encoder(order="deterministic")


@dataclass(frozen=True, slots=True)
class Fact:
    """One fact.

    Attributes:
        key: The semantic key, e.g. `pay.ok:in_123`.
        second: When it happened, in seconds since the epoch.
        tenant: Whose it is, where that is not the tenant its event is of.
        formerly: Keys under which the version before told the same; it is not told again where one of them
            was told, with this type, to this tenant (where the fact names one itself).
        formerly_is_of_its_second: Only what was told of the same second counts as the same.
        livemode: Whether it is about real money.
    """

    type: str
    key: str
    second: int
    source: str
    data: dict[str, Any]
    tenant: str | None = None
    formerly: tuple[str, ...] = ()
    formerly_is_of_its_second: bool = False
    livemode: bool | None = None
    account: str | None = None

    def subject(self, tenant: str) -> str:
        """Where it is published."""
        return subjects.billing(tenant, self.type)

    @property
    def time(self) -> str:
        """When it happened, RFC 3339."""
        return datetime.fromtimestamp(self.second, UTC).isoformat().replace("+00:00", "Z")

    def body(self, tenant: str) -> bytes:
        """The CloudEvent, byte for byte the same whenever it is made."""
        return _ENCODER.encode(
            {
                "specversion": "1.0",
                "id": self.key,
                "source": self.source,
                "type": self.type,
                "subject": tenant,
                "time": self.time,
                "datacontenttype": "application/json",
                "data": self.data | _mode(self.livemode, self.account),
            }
        )


def _mode(livemode: bool | None, account: str | None) -> dict[str, Any]:
    known = {} if livemode is None else {"livemode": livemode}
    return known if account is None else {**known, "account": account}


def stamped(facts: list[Fact], livemode: bool, account: str | None) -> list[Fact]:
    """The facts of an event or an object of this mode and account."""
    return [replace(fact, livemode=livemode, account=account) for fact in facts]


def without_nothing(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that say something; money becomes its three fields."""
    made: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Money):
            made |= msgspec.to_builtins(value)
        elif value is not None:
            made[name] = value
    return made
