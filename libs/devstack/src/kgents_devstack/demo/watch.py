"""What of the demo's events has been sent, counted and delivered, shown while it happens."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Self

import httpx
import psycopg
from rich.console import Console
from rich.live import Live
from rich.text import Text

from kgents_devstack.demo.traffic import Sent
from kgents_devstack.stack import Stack

LOOK_SECONDS = 0.5
# Where the output is no terminal: a line this often.
PLAIN_SECONDS = 5.0
# Nothing moved for so long: what is missing will not come.
STILL_SECONDS = 120.0
ENDS = ("accepted", "duplicate", "conflict", "dead")


class Watch:
    """Looks at stream and ledger in a thread of its own, and shows what it sees.

    Attributes:
        first_counted: Seconds until the first event of this round was counted; 0 while none is.
    """

    def __init__(self, console: Console, stack: Stack, sent: Sent) -> None:
        self._console = console
        self._stack = stack
        self._sent = sent
        self._began = time.monotonic()
        self._before = ledger_counts(stack.database_url)["accepted"]
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._show, name="demo.watch", daemon=True)
        self.first_counted = 0.0

    def until_settled(self) -> None:
        """Until every message of the stream ended as something and nothing is owed, or nothing moves."""
        last: tuple[int, ...] = ()
        moved = time.monotonic()
        while time.monotonic() - moved < STILL_SECONDS:
            ledger = ledger_counts(self._stack.database_url)
            if sum(ledger[name] for name in ENDS) >= stream_messages(self._stack) and ledger["owed"] == 0:
                return
            if tuple(ledger.values()) != last:
                last, moved = tuple(ledger.values()), time.monotonic()
            time.sleep(0.2)

    def _show(self) -> None:
        if not self._console.is_terminal:
            self._look()
            while not self._is_over.wait(LOOK_SECONDS):
                text = self._look()
                if time.monotonic() - self._began > PLAIN_SECONDS:
                    self._console.print(text, soft_wrap=True)
                    self._is_over.wait(PLAIN_SECONDS)
            return
        with Live(console=self._console, auto_refresh=False, transient=True) as live:
            while not self._is_over.wait(LOOK_SECONDS):
                live.update(self._look(), refresh=True)

    def _look(self) -> Text:
        try:
            ledger = ledger_counts(self._stack.database_url)
        except psycopg.Error:
            return Text("  the ledger does not answer")
        seconds = time.monotonic() - self._began
        if not self.first_counted and ledger["accepted"] > self._before:
            self.first_counted = seconds
        return Text(
            f"  {seconds:4.0f} s: {self._sent.acknowledged:,} acknowledged, {ledger['accepted']:,} counted,"
            f" {ledger['delivered']:,} delivered, {ledger['owed']:,} owed to OpenMeter"
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._thread.join()


def stream_messages(stack: Stack) -> int:
    """Messages in AGENTESE, as the server says."""
    answer = httpx.get(f"{stack.nats.monitor_url}/jsz?streams=true").json()
    details = answer["account_details"][0]["stream_detail"]
    return int(next(s["state"]["messages"] for s in details if s["name"] == "AGENTESE"))


def ledger_counts(database_url: str) -> dict[str, int]:
    """How messages ended, what is owed and what is delivered, as the ledger's tables say."""
    tables = {
        "accepted": "event",
        "duplicate": "duplicate",
        "conflict": "conflict",
        "dead": "dead",
        "owed": "outbox",
        "delivered": "delivered",
    }
    with psycopg.connect(database_url) as connection:
        found = {}
        for name, table in tables.items():
            row = connection.execute(f"select count(*) from metering.{table}".encode()).fetchone()
            found[name] = int(row[0]) if row else 0
    return found
