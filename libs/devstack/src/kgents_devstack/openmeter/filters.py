"""OpenMeter's filters of listings and queries: `$eq $ne $in $like $gt …`; they select nothing alone.

Source: `pkg/filter/filter.go`. A filter has one operator; `$and` and `$or` hold filters. Other than
OpenMeter, what is not known is refused, so that a client's typing error does not select everything.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, TypeVar

from kgents_devstack.openmeter.clocktext import parse
from kgents_devstack.openmeter.problem import Refusal

TextFilter = Callable[[str], bool]
MomentFilter = Callable[[datetime], bool]
_Filter = TypeVar("_Filter")

_ORDER: Mapping[str, Callable[[Any, Any], bool]] = {
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
}


def text_filter(document: object, place: str, depth: int = 1) -> TextFilter:
    """A filter of a string field (`FilterString`).

    Raises:
        Refusal: With status 400: not a filter, or nested deeper than OpenMeter allows.
    """
    name, operand = _single(document, place)
    if name in ("$and", "$or"):
        parts = _parts(operand, name, place, depth, text_filter)
        combine = all if name == "$and" else any
        return lambda value: combine(part(value) for part in parts)
    if name in ("$in", "$nin"):
        if not isinstance(operand, list) or not all(isinstance(item, str) for item in operand):
            raise Refusal(400, f"{place}: {name} needs a list of strings")
        chosen = frozenset(operand)
        return (lambda value: value in chosen) if name == "$in" else (lambda value: value not in chosen)
    if not isinstance(operand, str):
        raise Refusal(400, f"{place}: {name} needs a string")
    if name in ("$eq", "$ne"):
        return (lambda value: value == operand) if name == "$eq" else (lambda value: value != operand)
    if name in _ORDER:
        compare = _ORDER[name]
        return lambda value: compare(value, operand)
    if name in ("$like", "$nlike", "$ilike", "$nilike"):
        pattern = _like(operand, ignore_case=name in ("$ilike", "$nilike"))
        wanted = not name.startswith("$n")
        return lambda value: (pattern.fullmatch(value) is not None) is wanted
    raise Refusal(400, f"{place}: unknown operator {name!r}")


def moment_filter(document: object, place: str, depth: int = 1) -> MomentFilter:
    """A filter of a time field (`FilterTime`).

    Raises:
        Refusal: With status 400.
    """
    name, operand = _single(document, place)
    if name in ("$and", "$or"):
        parts = _parts(operand, name, place, depth, moment_filter)
        combine = all if name == "$and" else any
        return lambda moment: combine(part(moment) for part in parts)
    if name not in _ORDER:
        raise Refusal(400, f"{place}: unknown operator {name!r}")
    compare = _ORDER[name]
    try:
        bound = parse(operand) if isinstance(operand, str) else None
    except ValueError as error:
        raise Refusal(400, f"{place}: {error}") from None
    if bound is None:
        raise Refusal(400, f"{place}: {name} needs an RFC 3339 date-time")
    return lambda moment: compare(moment, bound)


def chosen_texts(document: object) -> frozenset[str] | None:
    """The strings an `$eq` or `$in` filter lets through; None for a filter of another kind."""
    if not isinstance(document, dict) or len(document) != 1:
        return None
    if isinstance(one := document.get("$eq"), str):
        return frozenset([one])
    if isinstance(many := document.get("$in"), list):
        return frozenset(item for item in many if isinstance(item, str))
    return None


def _single(document: object, place: str) -> tuple[str, object]:
    if not isinstance(document, dict):
        raise Refusal(400, f"{place}: a filter is an object")
    if len(document) != 1:
        raise Refusal(400, f"{place}: filter is invalid: multiple operators are set")
    name, operand = next(iter(document.items()))
    return str(name), operand


def _parts(
    operand: object, name: str, place: str, depth: int, make: Callable[[object, str, int], _Filter]
) -> list[_Filter]:
    if depth <= 0:
        raise Refusal(400, f"{place}: filter complexity exceeds maximum allowed depth")
    if not isinstance(operand, list) or not operand:
        raise Refusal(400, f"{place}: {name} needs a list of filters")
    return [make(item, place, depth - 1) for item in operand]


@lru_cache(maxsize=256)
def _like(pattern: str, *, ignore_case: bool) -> re.Pattern[str]:
    """A LIKE pattern of ClickHouse: `%` any text, `_` one character, a backslash takes either literally."""
    parts: list[str] = []
    characters = iter(pattern)
    for character in characters:
        if character == "\\":
            parts.append(re.escape(next(characters, "\\")))
        elif character == "%":
            parts.append(".*")
        elif character == "_":
            parts.append(".")
        else:
            parts.append(re.escape(character))
    return re.compile("".join(parts), re.DOTALL | (re.IGNORECASE if ignore_case else 0))
