"""Filters of groups, as OpenMeter takes them: checked and brought into one form; SQL is made elsewhere.

Source of the rules: OpenMeter `pkg/filter/filter.go`: an operator that is null is not set, and a filter with
none set is none. Other than there, several operators in one filter must all hold.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from typing import Any

from kgents_metering.model.query.errors import QueryError
from kgents_metering.model.query.parameters import Parameters, check_text

MAX_VALUES = 100
MAX_DEPTH = 4
MAX_LITERAL_CHARACTERS = 16_384
COMPARISONS = frozenset(
    {"$eq", "$ne", "$like", "$nlike", "$ilike", "$nilike", "$contains", "$ncontains"}
    | {"$gt", "$gte", "$lt", "$lte"}
)
LISTS = frozenset({"$in", "$nin"})
JOINS = frozenset({"$and", "$or"})

Filter = Mapping[str, Any]

_SIMPLE = "filterGroupBy"
_ADVANCED = "advancedMeterGroupByFilters"


def read_filters(values: Parameters, keys: Mapping[str, str]) -> dict[str, Filter]:
    """By group key, a tree of operators.

    Args:
        keys: The meter's.

    Raises:
        QueryError: 400.
    """
    simple = _simple(values)
    advanced = values.get(_ADVANCED)
    if simple and advanced:
        raise QueryError(f"{_SIMPLE} and {_ADVANCED} exclude each other")
    found: dict[str, object] = {key: {"$in": wanted} for key, wanted in simple.items()}
    if advanced:
        found = _object(advanced[-1], _ADVANCED)
    filters: dict[str, Filter] = {}
    for key, condition in found.items():
        if key not in keys:
            raise QueryError(f"invalid group by filter: {key[:100]!a}")
        if checked := _checked(condition, 0):
            filters[key] = checked
    return filters


def read_texts(condition: object) -> Filter:
    """A filter of a text, without what is not set.

    Raises:
        QueryError: 400.
    """
    return _checked(condition, 0)


def _simple(values: Parameters) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, wanted in values.items():
        if name.startswith(f"{_SIMPLE}[") and name.endswith("]"):
            found[name[len(_SIMPLE) + 1 : -1]] = list(wanted)
    for text in values.get(_SIMPLE) or ():
        for key, value in _literal(text).items():
            found.setdefault(key, []).extend(value if isinstance(value, list) else [value])
    for key, wanted in found.items():
        if not wanted or not all(isinstance(value, str) for value in wanted):
            raise QueryError(f"{_SIMPLE}[{ascii(key[:100])[1:-1]}]: must be one or more strings")
    return found


def _literal(text: str) -> dict[str, Any]:
    """An object in one parameter: as JSON, or as the official SDK writes it, which is Python's `repr`."""
    try:
        return _object(text, _SIMPLE)
    except QueryError:
        pass
    try:
        if len(text) > MAX_LITERAL_CHARACTERS:
            raise ValueError
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        found = None
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise QueryError(f"{_SIMPLE}: must be given as {_SIMPLE}[key]=value, or as an object")
    for key, value in found.items():
        check_text(key, _SIMPLE)
        if isinstance(value, str):
            check_text(value, key)
    return found


def _object(text: str, name: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise QueryError(f"{name}: must be JSON") from None
    if not isinstance(found, dict):
        raise QueryError(f"{name}: must be an object")
    return found


def _checked(condition: object, depth: int) -> Filter:
    """The condition without what is not set."""
    if not isinstance(condition, dict) or depth > MAX_DEPTH:
        raise QueryError(f"a filter must be an object of operators, nested at most {MAX_DEPTH} deep")
    found: dict[str, Any] = {}
    for operator, value in condition.items():
        if value is None:
            continue
        if operator in JOINS:
            if not isinstance(value, list) or not value:
                raise QueryError(f"{operator}: must be a list of filters")
            parts = [_checked(part, depth + 1) for part in value]
            if not all(parts):
                raise QueryError(f"{operator}: a filter in it has no operator")
            found[operator] = parts
        elif operator in LISTS:
            if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                raise QueryError(f"{operator}: must be a list of strings")
            if len(value) > MAX_VALUES:
                raise QueryError(f"{operator}: at most {MAX_VALUES} values")
            found[operator] = [check_text(item, operator) for item in value]
        elif operator in COMPARISONS and isinstance(value, str):
            found[operator] = check_text(value, operator)
        else:
            raise QueryError(f"{operator[:100]!a}: is no operator of a filter, or its value is no string")
    return found
