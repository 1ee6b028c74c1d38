"""What a dashboard is made of here: boards, rows and panels as values; how Grafana writes them is `grafana`'s."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Shape(StrEnum):
    """How a panel shows its numbers."""

    LINES = "timeseries"
    NUMBER = "stat"


@dataclass(frozen=True, slots=True)
class Query:
    """One expression, and what its lines are called (Grafana's legend, e.g. `{{route}}`)."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel.

    Attributes:
        description: What it means and what to do when it looks wrong.
        unit: Grafana's id of the unit.
        runbook: Group and section of the runbook.
        alarming: From here on it is shown in red; below it, where it is negative infinity's side.
        is_low_bad: Values below `alarming` are the bad ones.
        has_exemplars: Points that lead to a trace are shown.
        is_quiet: Nothing is shown while nothing is wrong, or until the first time: no data is no fault.
    """

    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]
    runbook: tuple[str, str]
    shape: Shape = Shape.LINES
    alarming: float | None = None
    is_low_bad: bool = False
    has_exemplars: bool = False
    is_quiet: bool = False
    width: int = 8


@dataclass(frozen=True, slots=True)
class Row:
    """A line of panels under a title."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Board:
    """One dashboard."""

    uid: str
    title: str
    description: str
    rows: tuple[Row, ...]


def rate(metric: str, matchers: str = "", *, by: str = "") -> str:
    """PromQL: per second, summed over instances."""
    selector = f"{metric}{{{matchers}}}" if matchers else metric
    grouping = f" by ({by})" if by else ""
    return f"sum{grouping} (rate({selector}[$__rate_interval]))"


def quantile(q: float, metric: str, matchers: str = "", *, by: str = "") -> str:
    """PromQL: a quantile of a histogram, over all instances."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({q}, {rate(f'{metric}_bucket', matchers, by=labels)})"


def quantiles(metric: str, matchers: str = "") -> tuple[Query, ...]:
    """Half, nineteen of twenty, ninety-nine of a hundred."""
    return tuple(
        Query(quantile(q, metric, matchers), name) for q, name in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
    )


def number(
    title: str,
    description: str,
    unit: str,
    expr: str,
    runbook: tuple[str, str],
    *,
    alarming: float | None = None,
    is_low_bad: bool = False,
    is_quiet: bool = False,
    legend: str = "",
    width: int = 4,
) -> Panel:
    """A panel of one number, or of a few."""
    return Panel(
        title,
        description,
        unit,
        (Query(expr, legend),),
        runbook,
        Shape.NUMBER,
        alarming,
        is_low_bad,
        is_quiet=is_quiet,
        width=width,
    )
