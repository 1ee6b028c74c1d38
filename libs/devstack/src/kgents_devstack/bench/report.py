"""What a benchmark found, told and kept as soon as it is found; it measures nothing."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from kgents_devstack.bench.offer import TooSlowError

DIRECTORY = Path(".bench")


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


class Report:
    """One run of benchmarks: each figure is printed, and in the file, before the next is measured.

    Attributes:
        path: The JSON file: `parts` by name, each with its `state` (measuring, measured, failed, too slow),
            its `figures` and, where there was one, its `error`.
    """

    def __init__(self, console: Console, directory: Path = DIRECTORY) -> None:
        self._console = console
        self._figures: list[Figure] = []
        self._parts: dict[str, dict[str, Any]] = {}
        self._began = datetime.now(UTC)
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / f"{self._began:%Y%m%dT%H%M%S}-{os.getpid()}.json"

    @property
    def is_good(self) -> bool:
        """Whether every part was measured or could not be here, and every target is met."""
        failed = any(part["state"] == "failed" for part in self._parts.values())
        return not failed and all(figure.is_met for figure in self._figures)

    def run(self, name: str, figures: Iterable[Figure]) -> None:
        """Measure one part; its failure is told and ends nothing else."""
        part: dict[str, Any] = {"state": "measuring", "figures": []}
        self._parts[name] = part
        began = time.monotonic()
        self._console.print(f"[bold]{name}[/] …")
        try:
            for figure in figures:
                self._figures.append(figure)
                part["figures"].append(_record(figure))
                self._console.print(f"  {_line(figure)}", highlight=False)
                self._keep()
            part["state"] = "measured"
        except TooSlowError as error:
            part |= {"state": "too slow", "error": str(error)}
            self._console.print(
                f"  [yellow]the machine is too slow for this one[/]: {error}", highlight=False
            )
        except Exception as error:  # a part's failure is told; the others are measured all the same
            part |= {"state": "failed", "error": f"{type(error).__name__}: {error}"}
            self._console.print(f"  [red]failed[/]: {part['error']}", highlight=False, markup=True)
        part["seconds"] = round(time.monotonic() - began, 1)
        self._keep()

    def end(self) -> None:
        """The table of all figures, what could not be measured, and where all of it is kept."""
        show(self._console, self._figures)
        for name, part in self._parts.items():
            if part["state"] != "measured":
                self._console.print(f"{name}: {part['state']}: {part.get('error', '')}", highlight=False)
        self._console.print(f"kept in {self.path}", highlight=False)

    def _keep(self) -> None:
        document = {
            "began": self._began.isoformat(),
            "machine": {"cores": os.cpu_count(), "load": os.getloadavg()},
            "parts": self._parts,
        }
        temporary = self.path.with_suffix(".new")
        temporary.write_text(json.dumps(document, indent=2) + "\n")
        temporary.replace(self.path)


def show(console: Console, figures: list[Figure]) -> None:
    """Print a table."""
    table = Table()
    for title in ("", "measured", "target", "met"):
        table.add_column(title, justify="left" if not title else "right")
    for figure in figures:
        met = "" if figure.target is None else ("[green]yes[/]" if figure.is_met else "[red]NO[/]")
        table.add_row(figure.what, f"{figure.value:,.4g} {figure.unit}", _target(figure), met)
    console.print(table)


def _target(figure: Figure) -> str:
    if figure.target is None:
        return ""
    return f"{'≤' if figure.at_most else '≥'} {figure.target:,.10g} {figure.unit}"


def _line(figure: Figure) -> str:
    met = "" if figure.is_met else " [red]missed[/]"
    target = f" ({_target(figure)})" if figure.target is not None else ""
    return f"{figure.what}: {figure.value:,.4g} {figure.unit}{target}{met}"


def _record(figure: Figure) -> dict[str, object]:
    return {
        "what": figure.what,
        "value": figure.value,
        "unit": figure.unit,
        "target": figure.target,
        "at_most": figure.at_most,
        "is_met": figure.is_met,
    }
