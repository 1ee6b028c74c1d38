"""What a benchmark found, and whether that is enough."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number.

    Attributes:
        target: What it must be at least (or at most); None for a number that only informs.
    """

    what: str
    value: float
    unit: str
    target: float | None = None
    at_most: bool = False

    @property
    def is_met(self) -> bool:
        """Whether it is as good as it has to be."""
        if self.target is None:
            return True
        return self.value <= self.target if self.at_most else self.value >= self.target


def show(console: Console, figures: list[Figure]) -> None:
    """Print a table."""
    table = Table()
    for title in ("", "measured", "target", "met"):
        table.add_column(title, justify="left" if not title else "right")
    for figure in figures:
        sign = "≤" if figure.at_most else "≥"
        target = "" if figure.target is None else f"{sign} {figure.target:,.10g} {figure.unit}"
        met = "" if figure.target is None else ("[green]yes[/]" if figure.is_met else "[red]NO[/]")
        table.add_row(figure.what, f"{figure.value:,.4g} {figure.unit}", target, met)
    console.print(table)
