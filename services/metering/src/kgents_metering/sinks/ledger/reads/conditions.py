"""A tree of OpenMeter's filter operators as an SQL condition, its values bound; it is checked elsewhere."""

from __future__ import annotations

import re
from typing import Any

from kgents_metering.model.query import Filter

_ORDERS = {"$eq": "=", "$ne": "<>", "$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}
_PATTERNS = {
    "$like": "like",
    "$nlike": "not like",
    "$ilike": "ilike",
    "$nilike": "not ilike",
    "$contains": "ilike",
    "$ncontains": "not ilike",
}


def condition(left: str, wanted: Filter, values: dict[str, Any], *, is_text: bool = True) -> str:
    """The condition on an expression of ours.

    Args:
        values: Where what is bound is added.
        is_text: Whether it compares texts: in the order of code points, whatever the database's collation is.
    """

    def bind(value: object) -> str:
        name = f"v{len(values)}"
        values[name] = value
        return f"%({name})s"

    parts: list[str] = []
    for operator, value in wanted.items():
        if operator in ("$and", "$or"):
            each = (condition(left, part, values, is_text=is_text) for part in value)
            parts.append(f"({f' {operator[1:]} '.join(each)})")
        elif operator == "$in":
            parts.append(f"{left} = any({bind(value)}::text[])")
        elif operator == "$nin":
            parts.append(f"not {left} = any({bind(value)}::text[])")
        elif operator in _PATTERNS:
            parts.append(f"{left} {_PATTERNS[operator]} {bind(_pattern(operator, value))}")
        else:
            collation = ' collate "C"' if is_text else ""
            parts.append(f"{left}{collation} {_ORDERS[operator]} {bind(value)}")
    return f"({' and '.join(parts)})"


def _pattern(operator: str, value: str) -> str:
    """A pattern of LIKE; the text itself where it is to be contained."""
    if operator in ("$contains", "$ncontains"):
        return "%" + re.sub(r"([\\\\%_])", r"\\\1", value) + "%"
    trailing = len(value) - len(value.rstrip("\\"))
    return value + "\\" if trailing % 2 else value  # Postgres refuses a pattern that ends in an escape
