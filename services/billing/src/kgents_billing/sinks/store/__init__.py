"""Schema `billing`: subscriptions, facts owed to the bus, what was applied, what waits or was set aside."""

from kgents_billing.sinks.store.commit import Committed, Origin, Store, origin_of
from kgents_billing.sinks.store.letters import DeadLetter, Letters, Waiting
from kgents_billing.sinks.store.outbox import Outbox, Owed
from kgents_billing.sinks.store.subscriptions import OvertakenError, Subscriptions

__all__ = [
    "Committed",
    "DeadLetter",
    "Letters",
    "Origin",
    "Outbox",
    "OvertakenError",
    "Owed",
    "Store",
    "Subscriptions",
    "Waiting",
    "origin_of",
]
