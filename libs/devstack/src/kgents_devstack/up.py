"""`make up`: a stack that stays, what to try with it, and a live table of what flows through it."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

import psycopg
from rich.console import Console
from rich.live import Live
from rich.table import Table

from kgents_devstack.demo.run import ledger_counts, stream_messages
from kgents_devstack.stack import EVERYTHING, Stack, StackOptions

REFRESH_SECONDS = 1.0
PLAIN_SECONDS = 5.0
ROWS = (
    ("stream", "messages in AGENTESE"),
    ("accepted", "events counted"),
    ("duplicate", "repeats"),
    ("conflict", "conflicts"),
    ("dead", "dead letters"),
    ("owed", "owed to OpenMeter"),
    ("delivered", "delivered to OpenMeter"),
)


def run_up(directory: Path | None) -> int:
    """Run until Ctrl-C or SIGTERM; everything it started ends with it."""
    console = Console()
    chosen = directory or Path(tempfile.mkdtemp(prefix="kgents-up-"))
    stack = Stack(chosen, StackOptions(services=EVERYTHING))
    try:
        console.print("starting …")
        stack.start()
        console.print(what_to_try(stack), highlight=False, markup=False, soft_wrap=True)
        _watch(console, stack)
    except KeyboardInterrupt:
        console.print("\nstopping …")
    finally:
        stack.stop()
        if directory is None:
            shutil.rmtree(chosen, ignore_errors=True)
    return 0


def what_to_try(stack: Stack) -> str:
    """Lines to copy and paste."""
    api, metering = stack.service("api").url, stack.service("metering").url
    billing, backup = stack.service("billing").url, stack.service("backup").url
    key = stack.keys["acme"]
    return f"""
A key for the tenant acme:
  export KEY={key}

Publish an event, twice: the second receipt says "duplicate": true
  curl -s {api}/v1/events -H "Authorization: Bearer $KEY" -H 'Content-Type: application/cloudevents+json' \\
    -d '{{"specversion":"1.0","id":"e1","source":"agents/a1","type":"llm.tokens",
         "data":{{"tokens":42,"model":"small-1","direction":"in"}}}}'

Ask what was used
  curl -s "{metering}/api/v1/meters/tokens/query?windowSize=HOUR&groupBy=model" \\
    -H "Authorization: Bearer $KEY"

The same with OpenMeter's own SDK
  openmeter.Client(endpoint="{api}", token=KEY).events.ingest_event(...)
  openmeter.Client(endpoint="{metering}", token=KEY).meters.query_json("tokens")

Follow your events as they are stored
  curl -sN {api}/v1/events/stream -H "Authorization: Bearer $KEY"

Stripe's webhooks, with Stripe's own command line (start with STRIPE_API_KEY to let billing ask back)
  stripe listen --forward-to {api}/webhooks/stripe     # signs with a secret of its own
  the secret this stack knows: {stack.webhook_secret}
What may the tenant use?
  curl -s {billing}/v1/billing/entitlements -H "Authorization: Bearer $KEY"

Contract and docs   {api}/docs
Health              {api}/health   {metering}/health   {billing}/health   {backup}/health
Metrics             the same with /metrics
Backups             {stack.directory}/backups
OpenMeter stand-in  {stack.openmeter.url}   (faults: PUT /_control/faults)
NATS                {stack.nats.url}   (monitor {stack.nats.monitor_url})
Postgres            {stack.database_url}
Files and logs      {stack.directory}

Ctrl-C stops everything.
"""


def _watch(console: Console, stack: Stack) -> None:
    before: dict[str, int] = {}
    if not console.is_terminal:
        while True:
            counts = _counts(stack)
            console.print("  ".join(f"{name}={counts[name]}" for name, _ in ROWS), highlight=False)
            time.sleep(PLAIN_SECONDS)
    with Live(console=console, auto_refresh=False) as live:
        while True:
            counts = _counts(stack)
            live.update(_table(counts, before), refresh=True)
            before = counts
            time.sleep(REFRESH_SECONDS)


def _counts(stack: Stack) -> dict[str, int]:
    try:
        return {"stream": stream_messages(stack), **ledger_counts(stack.database_url)}
    except (psycopg.Error, OSError, KeyError, StopIteration):
        return {name: 0 for name, _ in ROWS}


def _table(counts: dict[str, int], before: dict[str, int]) -> Table:
    table = Table()
    table.add_column("")
    table.add_column("now", justify="right")
    table.add_column("per second", justify="right")
    for name, title in ROWS:
        change = (counts[name] - before.get(name, counts[name])) / REFRESH_SECONDS
        table.add_row(title, f"{counts[name]:,}", f"{change:+,.0f}" if change else "")
    return table
