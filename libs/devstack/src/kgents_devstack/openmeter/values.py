"""What of an event's `data` a meter sees: a path's value as text and as a number; nothing is summed here.

OpenMeter decodes `data` into float64 numbers and writes it out again, then reads single values of it with
ClickHouse's JSON_VALUE, which knows text only (`meter_query.go`). So 1, 1.0 and "1" are one value, integers
past 2^53 are not what was sent, and objects and arrays have no value.
"""

from __future__ import annotations

import math
import re
from decimal import Context, Decimal
from typing import Any

import msgspec

Path = tuple[str | int, ...]

# Sums without rounding: more digits than any number of float64's range needs; zero is ours to decide.
EXACT = Context(prec=5000, Emax=999_999, Emin=-999_999)
LARGEST_EXACT_INTEGER = 2**53

_ANY: msgspec.json.Decoder[Any] = msgspec.json.Decoder()
_NAME = re.compile(r"\.([A-Za-z_][\w-]*)")
_QUOTED = re.compile(r"""\[(?:'([^']*)'|"([^"]*)")\]""")
_INDEX = re.compile(r"\[(\d+)\]")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


def parse_path(text: str) -> Path:
    """The steps of a JSONPath without wildcards or filters: `$.a.b`, `$['a b']`, `$.a[0]`.

    Raises:
        ValueError: It is another.
    """
    if not text.startswith("$"):
        raise ValueError(f"JSONPath {text!r} must start with $")
    steps: list[str | int] = []
    at = 1
    while at < len(text):
        if match := _NAME.match(text, at):
            steps.append(match[1])
        elif match := _QUOTED.match(text, at):
            steps.append(match[1] if match[1] is not None else match[2])
        elif match := _INDEX.match(text, at):
            steps.append(int(match[1]))
        else:
            raise ValueError(f"JSONPath {text!r} is not understood at {at}")
        at = match.end()
    return tuple(steps)


def decode(data: bytes) -> object:
    """An event's `data`; None where there is none, or none that can be read."""
    try:
        return _ANY.decode(data)
    except (msgspec.DecodeError, RecursionError):
        return None


def text_at(document: object, path: Path) -> str | None:
    """The value at a path as JSON_VALUE gives it; None where it is missing, an object or an array."""
    value = document
    for step in path:
        if isinstance(step, str):
            if not isinstance(value, dict) or step not in value:
                return None
            value = value[step]
        elif isinstance(value, list) and step < len(value):
            value = value[step]
        else:
            return None
    return as_text(value)


def as_text(value: object) -> str | None:
    """A single JSON value as text: strings as they are, null `null`, numbers as Go writes a float64."""
    if isinstance(value, str):
        return value
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and -LARGEST_EXACT_INTEGER <= value <= LARGEST_EXACT_INTEGER:
        return str(value)
    if isinstance(value, (int, float)):
        return _go_float(value)
    return None


def number(text: str | None) -> Decimal | None:
    """The text as a number, exactly; None for what is no number or not finite as a float64."""
    if text is None or not _NUMBER.fullmatch(text):
        return None
    nearest = float(text)
    if not math.isfinite(nearest):
        return None
    return Decimal(text) if nearest != 0 else Decimal(0)


def kept(value: object) -> object:
    """`data` as OpenMeter gives it back: its numbers went through float64."""
    if isinstance(value, dict):
        return {key: kept(item) for key, item in value.items()}
    if isinstance(value, list):
        return [kept(item) for item in value]
    if isinstance(value, int) and abs(value) > LARGEST_EXACT_INTEGER:
        return msgspec.Raw((_go_float(value) or "null").encode())
    return value


def _go_float(value: float) -> str | None:
    """Go's `encoding/json`: the shortest digits; an exponent below 1e-6 and from 1e21 on."""
    try:
        nearest = float(value)
    except OverflowError:
        return None
    if nearest == 0:
        return "0"
    if 1e-6 <= abs(nearest) < 1e21:
        plain = format(Decimal(repr(nearest)), "f")
        return plain.removesuffix(".0")
    return repr(nearest).replace("e-0", "e-").replace(".0e", "e")
