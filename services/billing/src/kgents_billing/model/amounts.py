"""Amounts as Stripe must send them, or a refusal that says which field is what; nothing is guessed."""

from __future__ import annotations

from kgents_billing.model.event import Json
from kgents_billing.model.money import Money, money
from kgents_common.errors import PermanentError

# Stripe's amounts have at most twelve digits.
MAX_MINOR = 10**15


class MalformedAmountError(PermanentError):
    """An amount that is no whole number of minor units, or has no currency: nothing is told of it."""


def amount(thing: Json, name: str) -> Money:
    """An object's amount in its currency.

    Raises:
        MalformedAmountError: Naming the field and what is wrong with it, not its value.
    """
    what = f"{thing.get('object') or 'object'}.{name}"
    value, currency = thing.get(name), thing.get("currency")
    if isinstance(value, bool) or not isinstance(value, int):
        raise MalformedAmountError(f"{what} must be a whole number of minor units, not {_kind(value)}")
    if not 0 <= value <= MAX_MINOR:
        raise MalformedAmountError(f"{what} is below nothing or beyond any amount")
    found = money(value, currency)
    if found is None:
        raise MalformedAmountError(f"{what} has no currency: {_kind(currency)} in its place")
    return found


def optional_amount(thing: Json, name: str) -> int:
    """An amount that older versions do not send; nothing where it is absent or null. Errors as `amount`."""
    return 0 if thing.get(name) is None else amount(thing, name).amount_minor


def _kind(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, float):
        return "a fraction"
    return {"str": "a text", "bool": "a boolean", "list": "a list", "dict": "an object"}.get(
        type(value).__name__, type(value).__name__
    )
