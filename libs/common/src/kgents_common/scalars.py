"""What a number and a text are, the same for the door and for the ledger; nothing is measured here.

A number is JSON's (RFC 8259 section 6) within float64's range, its exponent of at most six digits: each is
exact as a Decimal, and no reader downstream finds it infinite. A text is Unicode without U+0000, which no
database column holds, and without lone surrogates, which no UTF-8 holds.
"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

import msgspec

NUMBER_RULE = "a number within float64's range, with an exponent of at most six digits"
TEXT_RULE = "text in UTF-8 without U+0000"

MAX_DEPTH = 32
MAX_EXPONENT_DIGITS = 6
# From here on the nearest float64 is infinity (half a unit beyond its largest finite number).
INFINITE = Decimal(2**1024 - 2**970)
_MOST_DIGITS = 309

_TEXT_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,6})?")
# An escaped U+0000, its backslash not itself escaped.
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_LONG_INTEGER = re.compile(rb"[0-9]{309}")
_NESTED = (dict, list)


class TooLargeError(ValueError):
    """A number that float64 has no finite value for."""


def decimal(text: str) -> Decimal:
    """The number that a text in decimal notation stands for, exactly, with every digit.

    The notation is what OpenMeter's parser (Go's `ParseFloat`) and JSON have in common, and a leading plus or
    point as the former takes: ASCII digits, no spaces, no separators, no hexadecimal.

    Raises:
        TooLargeError: float64 has no finite value for it.
        ValueError: It is none.
    """
    if not _TEXT_NUMBER.fullmatch(text):
        raise ValueError(f"must be {NUMBER_RULE}")
    try:
        found = Decimal(text)
    except InvalidOperation:  # more digits than a Decimal has
        raise ValueError(f"must be {NUMBER_RULE}") from None
    if is_infinite(found):
        raise TooLargeError(f"must be {NUMBER_RULE}")
    return found


def is_infinite(value: Decimal) -> bool:
    """Whether float64 has no finite value for it."""
    return not value.is_finite() or value.copy_abs() >= INFINITE


_CHECKED = msgspec.json.Decoder(float_hook=decimal)


_ANY = msgspec.json.Decoder()


def check_stored_json(text: bytes) -> None:
    """Check a JSON value by what the rule was before: floats in float64's range, UTF-8, at most 32 levels.

    Raises:
        ValueError: With the rule that it breaks, beginning with `must`.
    """
    try:
        value = _ANY.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError(f"must be JSON within float64's range and {MAX_DEPTH} levels: {error}") from None
    if _is_too_deep(text, value):
        raise ValueError(f"must not nest deeper than {MAX_DEPTH} levels")


def check_json(text: bytes) -> None:
    """Check a JSON value: every number and text in it, and that it nests at most 32 levels.

    Raises:
        ValueError: With the rule that it breaks, beginning with `must`.
    """
    try:
        value = _CHECKED.decode(text)
    except UnicodeDecodeError:
        raise ValueError(f"must be {TEXT_RULE}") from None
    except RecursionError:
        raise ValueError(f"must not nest deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:
        rule = str(error)
        raise ValueError(rule if rule.startswith("must be") else f"must be JSON: {rule}") from None
    if _is_too_deep(text, value):
        raise ValueError(f"must not nest deeper than {MAX_DEPTH} levels")
    if b"\\u0000" in text and _NUL.search(text):
        raise ValueError(f"must be {TEXT_RULE}")
    # Integers come as ints, whatever their length.
    if len(text) >= _MOST_DIGITS and _LONG_INTEGER.search(text) and _has_infinite(value):
        raise ValueError(f"must be {NUMBER_RULE}")


def _is_too_deep(text: bytes, value: object) -> bool:
    # So few brackets nest no deeper, wherever they are.
    return text.count(b"{") + text.count(b"[") > MAX_DEPTH and _depth(value) > MAX_DEPTH


def _depth(value: object) -> int:
    """Levels of nesting, counted only as far as the limit."""
    level: list[object] = [value]
    depth = 0
    while level and depth <= MAX_DEPTH:
        depth += 1
        below: list[object] = []
        for item in level:
            if type(item) is dict:
                below.extend(v for v in item.values() if type(v) in _NESTED)
            elif type(item) is list:
                below.extend(v for v in item if type(v) in _NESTED)
        level = below
    return depth


def _has_infinite(value: object) -> bool:
    if isinstance(value, dict):
        return any(map(_has_infinite, value.values()))
    if isinstance(value, list):
        return any(map(_has_infinite, value))
    return isinstance(value, int) and abs(value) >= INFINITE
