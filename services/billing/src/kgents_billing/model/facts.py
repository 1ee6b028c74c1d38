"""A fact: what billing tells the rest of the system, once, under a name made of what happened; it stores
none.

On the wire a fact is a CloudEvent 1.0 on `events.billing.<tenant>.<type>`. Its id is the semantic key, which
is also the `Nats-Msg-Id`: two Stripe events about one happening give one fact. Data holds ids, amounts in
minor units with their currency, enumerations and times in seconds; nothing personal, no URL, no free text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
FAILED = "payment.failed"
REFUNDED = "payment.refunded"
DISPUTED = "payment.disputed"
CUSTOMER_DELETED = "customer.deleted"

_ENCODER = msgspec.json.Encoder(order="deterministic")


@dataclass(frozen=True, slots=True)
class Fact:
    """One fact.

    Attributes:
        key: The semantic key, e.g. `pay.ok:in_123`.
        second: When it happened, in seconds since the epoch.
        tenant: Whose it is, where that is not the tenant its event is of.
        formerly: The key under which the version before told the same to the same tenant.
    """

    type: str
    key: str
    second: int
    source: str
    data: Mapping[str, Any]
    tenant: str | None = None
    formerly: str | None = None

    def subject(self, tenant: str) -> str:
        """Where it is published."""
        return subjects.billing(tenant, self.type)

    def body(self, tenant: str) -> bytes:
        """The CloudEvent, byte for byte the same whenever it is made."""
        return _ENCODER.encode(
            {
                "specversion": "1.0",
                "id": self.key,
                "source": self.source,
                "type": self.type,
                "subject": tenant,
                "time": datetime.fromtimestamp(self.second, UTC).isoformat().replace("+00:00", "Z"),
                "datacontenttype": "application/json",
                "data": self.data,
            }
        )


def without_nothing(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that say something; money becomes its three fields."""
    made: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Money):
            made |= msgspec.to_builtins(value)
        elif value is not None:
            made[name] = value
    return made
