"""What a PromQL expression reads: metric names with the labels it asks of them; it evaluates nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import promql_parser

# Grafana's own variables, as values that the parser takes.
_GRAFANA = {
    "$__rate_interval": "5m",
    "$__interval": "1m",
    "$__range": "1h",
}


@dataclass(frozen=True, slots=True)
class Reading:
    """One selector: a metric's name, and the labels that its matchers name."""

    metric: str
    labels: frozenset[str]
    matchers: tuple[tuple[str, str, str], ...]


def substituted(expression: str) -> str:
    """The expression with Grafana's variables replaced: the parser takes none."""
    for name, value in _GRAFANA.items():
        expression = expression.replace(name, value)
    return re.sub(r"\$\{?\w+\}?", "x", expression)


def parse(expression: str) -> promql_parser.Expr:
    """The syntax tree.

    Raises:
        ValueError: It is no PromQL.
    """
    return promql_parser.parse(substituted(expression))


def readings(expression: str) -> list[Reading]:
    """Every selector of the expression."""
    return [_reading(node) for node in _nodes(parse(expression)) if type(node).__name__ == "VectorSelector"]


def grouping_labels(expression: str) -> set[str]:
    """The labels that aggregations keep (`by`) and that matching is done on."""
    found: set[str] = set()
    for node in _nodes(parse(expression)):
        if type(node).__name__ == "AggregateExpr" and node.modifier is not None:
            found |= set(node.modifier.labels)
    return found


def _reading(node: Any) -> Reading:
    matchers = tuple((m.name, _operator(m.op), m.value) for m in node.matchers.matchers)
    name = node.name or next((v for n, _, v in matchers if n == "__name__"), "")
    return Reading(name, frozenset(n for n, _, _ in matchers if n != "__name__"), matchers)


def _operator(op: Any) -> str:
    return {"Equal": "=", "NotEqual": "!=", "Re": "=~", "NotRe": "!~"}.get(
        str(op).rpartition(".")[2], str(op)
    )


def _nodes(node: Any) -> Iterator[Any]:
    yield node
    for name in ("lhs", "rhs", "expr", "param", "vector_selector", "vs"):
        child = getattr(node, name, None)
        if isinstance(child, promql_parser.Expr):
            yield from _nodes(child)
    arguments = getattr(node, "args", None)
    if isinstance(arguments, list):
        for child in arguments:
            yield from _nodes(child)
