"""A stand-in for Stripe: lives of its own, its API where billing reads it, its webhooks with their faults."""

from kgents_devstack.stripe.delivery import Chaos, Sender, signed
from kgents_devstack.stripe.events import Books, snapshot
from kgents_devstack.stripe.life import Life, Told
from kgents_devstack.stripe.objects import START, new_id
from kgents_devstack.stripe.random_life import random_life
from kgents_devstack.stripe.stand_in import StripeStandIn

__all__ = [
    "START",
    "Books",
    "Chaos",
    "Life",
    "Sender",
    "StripeStandIn",
    "Told",
    "new_id",
    "random_life",
    "signed",
    "snapshot",
]
