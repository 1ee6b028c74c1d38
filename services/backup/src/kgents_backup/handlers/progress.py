"""Progress of long steps: a bar on a terminal, plain lines elsewhere; it goes to standard error."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from kgents_backup.model import ports

LINE_SECONDS = 5.0


class Bars:
    """rich's bars, one for each step under way."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Progress | None = None
        self._task: TaskID | None = None

    def begin(self, what: str, total: int | None, unit: str) -> None:
        """See `Progress.begin`."""
        self.end()
        columns = (DownloadColumn(), TransferSpeedColumn()) if unit == "bytes" else (MofNCompleteColumn(),)
        self._live = Progress(
            TextColumn("{task.description:<28}"),
            BarColumn(),
            *columns,
            TimeRemainingColumn(),
            console=self._console,
        )
        self._live.start()
        self._task = self._live.add_task(what, total=total)

    def advance(self, by: int) -> None:
        """See `Progress.advance`."""
        if self._live is not None and self._task is not None:
            self._live.advance(self._task, by)

    def end(self) -> None:
        """See `Progress.end`."""
        if self._live is not None:
            self._live.stop()
            self._live = self._task = None


class Lines:
    """A line when a step begins and ends, and one every few seconds between."""

    def __init__(self) -> None:
        self._what = ""
        self._total: int | None = None
        self._unit = ""
        self._done = 0
        self._begun = 0.0
        self._said = 0.0

    def begin(self, what: str, total: int | None, unit: str) -> None:
        """See `Progress.begin`."""
        self._what, self._total, self._unit, self._done = what, total, unit, 0
        self._begun = self._said = time.monotonic()

    def advance(self, by: int) -> None:
        """See `Progress.advance`."""
        self._done += by
        if time.monotonic() - self._said >= LINE_SECONDS:
            self._said = time.monotonic()
            share = f" ({100 * self._done // self._total} %)" if self._total else ""
            self._say(f"{self._what}: {amount(self._done, self._unit)}{share}")

    def end(self) -> None:
        """See `Progress.end`."""
        if self._what:
            seconds = time.monotonic() - self._begun
            self._say(f"{self._what}: {amount(self._done, self._unit)} in {seconds:.1f} s")
            self._what = ""

    def _say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)  # noqa: T201 the command's answer


def amount(count: float, unit: str) -> str:
    """A count with its unit; bytes in the largest that fits."""
    if unit != "bytes":
        return f"{count:,.0f} {unit}"
    for name in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or name == "GiB":
            return f"{count:.0f} {name}" if name == "B" else f"{count:.1f} {name}"
        count /= 1024
    return ""


def for_terminal() -> ports.Progress:
    """Bars where standard error is a terminal, lines elsewhere."""
    console = Console(stderr=True)
    return Bars(console) if console.is_terminal else Lines()
