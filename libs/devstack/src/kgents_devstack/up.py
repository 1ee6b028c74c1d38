"""`make up`: a stack that stays, what to try with it, and a live table of what flows through it."""

from __future__ import annotations

import os
import shutil
import time
import webbrowser
from collections.abc import Sequence
from pathlib import Path

import httpx
import psycopg
from rich.console import Console
from rich.live import Live
from rich.table import Table

from kgents_devstack import controls, kept, ports
from kgents_devstack.apart import STACK_FILE, UP_DIRECTORY, forget_told, write_about
from kgents_devstack.demo.watch import ledger_counts, stream_messages
from kgents_devstack.keeper import Keeper
from kgents_devstack.page import PageServer
from kgents_devstack.servers import StartError
from kgents_devstack.sources import SourceWatch
from kgents_devstack.stack import EVERYTHING, Stack, StackOptions, passed_on

# Stays between runs, beside whatever calls it: the project's own folder, which git does not see.
DEFAULT_DIRECTORY = UP_DIRECTORY


REFRESH_SECONDS = 1.0
PLAIN_SECONDS = 5.0
LOOK_SECONDS = 0.3
ROWS = (
    ("stream", "messages in AGENTESE"),
    ("accepted", "events counted"),
    ("duplicate", "repeats"),
    ("conflict", "conflicts"),
    ("dead", "dead letters"),
    ("owed", "owed to OpenMeter"),
    ("delivered", "delivered to OpenMeter"),
)


def run_up(
    directory: Path | None, *, fresh: bool = False, opens_page: bool = False, service: str | None = None
) -> int:
    """Run until Ctrl-C or SIGTERM; everything it started ends with it, and its files stay.

    Args:
        fresh: Forget what an earlier run left in the directory.
        opens_page: Open the page in a browser, and send a little traffic so that something moves.
        service: Restart this one when its source changes, or its library's.

    Returns:
        0, or 1 where it could not start; it says why.
    """
    console = Console()
    chosen = (directory or DEFAULT_DIRECTORY).absolute()
    try:
        with PageServer() as page, kept.faults_told(chosen):
            _run(console, chosen, page, fresh=fresh, opens_page=opens_page, service=service)
    except StartError as error:
        console.print(str(error), style="red", highlight=False, markup=False, soft_wrap=True)
        return 1
    return 0


def _run(
    console: Console,
    chosen: Path,
    page: PageServer,
    *,
    fresh: bool,
    opens_page: bool,
    service: str | None,
) -> None:
    if service is not None and service not in EVERYTHING:
        raise StartError(f"unknown service {service}; known: {', '.join(EVERYTHING)}")

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    if fresh:
        forget(Stack(chosen))
    again = "again " if (chosen / "identity.json").exists() else ""
    say(f"starting {again}in {chosen} …")
    forget_told(chosen)
    with kept.alone(chosen):
        # A stack that runs here holds its ports: they are asked for by whoever has the directory.
        chosen_ports = ports.choose(chosen, say)
    environment = passed_on(os.environ)
    if "OTEL_EXPORTER_OTLP_ENDPOINT" not in os.environ:
        environment = page.traced(environment, EVERYTHING)
    stack = Stack(
        chosen,
        StackOptions(
            services=EVERYTHING,
            environment=environment,
            webhook_secrets=os.environ.get("STRIPE_WEBHOOK_SECRETS", ""),
            keeps=True,
            ports=chosen_ports,
            operations_ports={name: chosen_ports[ports.of_operators(name)] for name in EVERYTHING},
        ),
    )
    try:
        stack.start()
        page.show(stack)
        write_about(stack, chosen)
        say(what_to_try(stack, page.url))
        if opens_page:
            page.play()
            webbrowser.open(page.url)
        keeper = Keeper(stack.processes, say, on_begun=lambda: write_about(stack, chosen))
        _watch(console, stack, [keeper, *([Reload(console, stack, service)] if service else [])])
    except KeyboardInterrupt:
        console.print("\nstopping …")
    finally:
        if stack.is_started:
            (chosen / STACK_FILE).unlink(missing_ok=True)
        stack.stop()


def forget(stack: Stack) -> None:
    """Remove what an earlier run left.

    Raises:
        StartError: A stack runs there, or the directory is not a stack's.
    """
    if not stack.directory.exists() or not any(stack.directory.iterdir()):
        return
    if not (stack.directory / "identity.json").exists():
        raise StartError(f"{stack.directory} is not a stack's directory: nothing was removed")
    with kept.alone(stack.directory):
        stack.postgres.discard()
        shutil.rmtree(stack.directory)


def what_to_try(stack: Stack, page: str) -> str:
    """Lines to copy and paste."""
    api, billing = stack.service("api").url, stack.service("billing").url
    of_api = stack.service("api").operations_url
    health = "   ".join(f"{s.operations_url}/health" for s in stack.services)
    key = stack.keys["acme"]
    dead = controls.command_line(stack.directory, "operate", "metering", "dead", "list")
    status = controls.command_line(stack.directory, "operate", "backup", "status")
    is_usual = stack.directory == DEFAULT_DIRECTORY.absolute()
    anew = "make up FRESH=1" if is_usual else controls.command_line(stack.directory, "up", "--fresh")
    asks = (
        "billing asks Stripe with your STRIPE_API_KEY"
        if stack.options.environment.get("billing", {}).get("STRIPE_API_KEY")
        else "start with STRIPE_API_KEY=rk_test_… to let billing ask back"
    )
    return f"""
See it live         {page}

A key for the tenant acme:
  export KEY={key}

Publish an event, twice: the second receipt says "duplicate": true
  curl -s {api}/v1/events -H "Authorization: Bearer $KEY" -H 'Content-Type: application/cloudevents+json' \\
    -d '{{"specversion":"1.0","id":"e1","source":"agents/a1","type":"llm.tokens",
         "data":{{"tokens":42,"model":"small-1","direction":"in"}}}}'

Ask what was used
  curl -s "{api}/api/v1/meters/tokens/query?windowSize=HOUR&groupBy=model" \\
    -H "Authorization: Bearer $KEY"

The same with OpenMeter's own SDK
  client = openmeter.Client(endpoint="{api}", token=KEY)
  client.events.ingest_event(...); client.meters.query_json("tokens")

What of yours was not counted, or not by every meter?  (kind=invalid, dead, conflict)
  curl -s "{api}/v1/bad-events?kind=invalid" -H "Authorization: Bearer $KEY"

Follow your events as they are stored
  curl -sN {api}/v1/events/stream -H "Authorization: Bearer $KEY"

Stripe's webhooks, with Stripe's own command line ({asks})
  stripe listen --forward-to {api}/webhooks/stripe
  # it prints the secret it signs with: start this with STRIPE_WEBHOOK_SECRETS=whsec_…
  # the stack's own secret: {stack.webhook_secret}

What may the tenant use?
  curl -s {billing}/v1/billing/entitlements -H "Authorization: Bearer $KEY"

What an operator does, in any terminal (any command of README's table)
  {dead}
  {status}

Contract and docs   {of_api}/docs
Health              {health}
Metrics             the same with /metrics
Backups             {stack.directory}/backups
OpenMeter stand-in  {stack.openmeter.url}   (faults: PUT /_control/faults)
NATS                {stack.nats.address}   (agents, with their key; monitor {stack.nats.monitor_url})
                    {stack.nats.url}   (a developer, who may do everything)
Postgres            {stack.database_url}
Files and logs      {stack.directory}

Ctrl-C stops everything; the next start goes on with it (`{anew}` begins anew).
"""


class Reload:
    """Restarts one service when its source changes; what it had accepted it finishes first."""

    def __init__(self, console: Console, stack: Stack, name: str) -> None:
        self._console = console
        self._service = stack.service(name)
        self._watch = SourceWatch(self._service.module, "kgents_common")

    def look(self) -> None:
        """Look once; an edit that does not start is told, and waited out."""
        if not self._watch.has_changed():
            return
        began = time.monotonic()
        try:
            self._service.restart()
        except StartError as error:
            self._service.stop()  # until the next edit, nobody begins it anew
            self._console.print(str(error), style="red", highlight=False, markup=False)
        else:
            seconds = time.monotonic() - began
            self._console.print(f"{self._service.name} serves the new source after {seconds:.1f} s")


def _watch(console: Console, stack: Stack, looking: Sequence[Keeper | Reload]) -> None:
    before: dict[str, int] = {}
    if not console.is_terminal:
        while True:
            counts = _counts(stack)
            console.print("  ".join(f"{name}={counts[name]}" for name, _ in ROWS), highlight=False)
            _rest(PLAIN_SECONDS, looking)
    with Live(console=console, auto_refresh=False) as live:
        while True:
            counts = _counts(stack)
            live.update(_table(counts, before), refresh=True)
            before = counts
            _rest(REFRESH_SECONDS, looking)


def _rest(seconds: float, looking: Sequence[Keeper | Reload]) -> None:
    """Until the next line; processes and sources are looked at meanwhile."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        for one in looking:
            one.look()
        time.sleep(min(left, LOOK_SECONDS))


def _counts(stack: Stack) -> dict[str, int]:
    try:
        return {"stream": stream_messages(stack), **ledger_counts(stack.database_url)}
    except (psycopg.Error, httpx.HTTPError, OSError, ValueError, LookupError, StopIteration):
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
