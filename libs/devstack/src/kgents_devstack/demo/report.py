"""How the demo shows that two sides agree; it compares nothing by itself."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Line:
    """One comparison: both sides, and whether they agree."""

    what: str
    expected: object
    found: object

    @property
    def agrees(self) -> bool:
        """Whether the two are equal."""
        return self.expected == self.found


def show(console: Console, title: str, lines: list[Line]) -> None:
    """Print the comparisons as a table."""
    table = Table(title=title, title_justify="left")
    table.add_column("")
    table.add_column("sent", justify="right")
    table.add_column("found", justify="right")
    table.add_column("agree")
    for line in lines:
        mark = "[green]yes[/]" if line.agrees else "[bold red]NO[/]"
        table.add_row(line.what, _text(line.expected), _text(line.found), mark)
    console.print(table)


def _text(value: object) -> str:
    return value if isinstance(value, str) else f"{value:,}"
