"""A stand-in for Stripe: its API where billing reads it, and its webhooks, with their documented faults."""

from kgents_devstack.stripe.delivery import Chaos, Sender, signed
from kgents_devstack.stripe.stand_in import StripeStandIn

__all__ = ["Chaos", "Sender", "StripeStandIn", "signed"]
