"""Amounts as Stripe sends them: integers in a currency's smallest unit, never a float.

Source: docs.stripe.com/currencies, "Zero-decimal currencies", "Three-decimal currencies" and "Special cases":
ISK and UGX have no subunit but are sent with two decimals.
"""

from __future__ import annotations

import msgspec

_ZERO = frozenset(
    {"bif", "clp", "djf", "gnf", "jpy", "kmf", "krw", "mga", "pyg", "rwf", "vnd", "vuv", "xaf", "xof", "xpf"}
)
_THREE = frozenset({"bhd", "jod", "kwd", "omr", "tnd"})


class Money(msgspec.Struct, frozen=True):
    """An amount.

    Attributes:
        amount_minor: In the currency's smallest unit as Stripe counts it.
        currency: ISO 4217, lower case.
        exponent: Digits after the decimal point: 1999 usd with exponent 2 is 19.99.
    """

    amount_minor: int
    currency: str
    exponent: int


def money(amount: object, currency: object) -> Money | None:
    """The amount, where both parts are usable."""
    if not isinstance(amount, int) or isinstance(amount, bool) or not isinstance(currency, str):
        return None
    lower = currency.lower()
    if len(lower) != 3 or not lower.isascii() or not lower.isalpha():
        return None
    return Money(amount, lower, exponent(lower))


def exponent(currency: str) -> int:
    """Decimal digits of a currency's smallest unit at Stripe."""
    if currency in _ZERO:
        return 0
    return 3 if currency in _THREE else 2
