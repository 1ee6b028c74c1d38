"""Runs the main job and compares what was sent with what stream, ledger and OpenMeter say."""

from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

from openmeter import Client
from rich.console import Console

from kgents_devstack import kept
from kgents_devstack.demo import drill, subscription, traffic
from kgents_devstack.demo.report import Line, show
from kgents_devstack.demo.traffic import Sent
from kgents_devstack.demo.watch import Watch, ledger_counts, stream_messages
from kgents_devstack.servers import StartError
from kgents_devstack.stack import EVERYTHING, Stack, StackOptions

TENANT = "acme"
SDK_EVENTS = 20


def run_demo(*, seed: int = 1, directory: Path | None = None) -> int:
    """Two rounds, the second with OpenMeter failing half of its calls, a subscription's life, and a loss
    of everything.

    Args:
        directory: Where the files stay; a temporary one is removed in the end.

    Returns 0 where every number agrees, 1 where one does not or nothing could start; it says why.
    """
    console = Console()
    chosen = directory.absolute() if directory is not None else Path(tempfile.mkdtemp(prefix="kgents-demo-"))
    try:
        with kept.faults_told(chosen):
            if directory is not None and chosen.exists() and any(chosen.iterdir()):
                raise StartError(f"{chosen} is not empty: the demo counts from nothing")
            agreed = _run(console, chosen, seed)
    except StartError as error:
        console.print(str(error), style="red", highlight=False, markup=False, soft_wrap=True)
        return 1
    finally:
        if directory is None:
            shutil.rmtree(chosen, ignore_errors=True)
    console.print("[bold green]every number agrees[/]" if agreed else "[bold red]the numbers do not agree[/]")
    return 0 if agreed else 1


def _run(console: Console, chosen: Path, seed: int) -> bool:
    console.print("starting nats-server, Valkey, Postgres, OpenMeter (stand-in) and the four services …")
    began = time.monotonic()
    with Stack(chosen, StackOptions(services=EVERYTHING)) as stack:
        console.print(f"up in {time.monotonic() - began:.1f} s\n")
        sent = Sent()
        agreed = _round(console, stack, sent, "all is well", random.Random(seed))
        stack.openmeter.set_faults(fail_rate=0.5, seed=seed)
        agreed &= _round(console, stack, sent, "OpenMeter fails half of its calls", random.Random(seed + 1))
        stack.openmeter.clear_faults()
        agreed &= subscription.run(console, stack, random.Random(seed))
        agreed &= drill.run(
            console, stack, more=lambda: _more(console, stack, sent), usage=lambda: _usages(stack)
        )
    return agreed


def _more(console: Console, stack: Stack, sent: Sent) -> None:
    with Watch(console, stack, sent) as watch:
        traffic.send_with_cloudevents_sdk(
            sent, url=stack.service("api").url, key=stack.keys[TENANT], count=SDK_EVENTS
        )
        watch.until_settled()


def _usages(stack: Stack) -> dict[str, object]:
    return {
        "tokens, by our reads": _usage(_reads(stack), "tokens"),
        "tokens, by OpenMeter": _usage(_openmeter(stack), "tokens"),
        "calls, by our reads": _usage(_reads(stack), "llm_calls"),
    }


def _round(console: Console, stack: Stack, sent: Sent, title: str, roll: random.Random) -> bool:
    url, key = stack.service("api").url, stack.keys[TENANT]
    began = time.monotonic()
    with Watch(console, stack, sent) as watch:
        traffic.send_with_openmeter_sdk(sent, url=url, key=key, tenant=TENANT, count=SDK_EVENTS)
        traffic.send_with_cloudevents_sdk(sent, url=url, key=key, count=SDK_EVENTS)
        asyncio.run(traffic.send_burst(sent, url=url, key=key, roll=roll))
        asyncio.run(traffic.publish_directly(sent, url=stack.nats.address, key=key, tenant=TENANT))
        accepted = time.monotonic() - began
        watch.until_settled()
    lines = _compare(stack, sent)
    show(console, title, lines)
    settled = time.monotonic() - began - accepted
    first = f"the first counted after {watch.first_counted:.1f} s, " if watch.first_counted else ""
    console.print(
        f"{first}all accepted in {accepted:.1f} s, counted and delivered {settled:.1f} s later\n",
        soft_wrap=True,
    )
    return all(line.agrees for line in lines)


def _compare(stack: Stack, sent: Sent) -> list[Line]:
    ledger = ledger_counts(stack.database_url)
    stats = stack.openmeter.stats()
    unique = len(sent.unique) + sent.direct["accepted"]
    return [
        Line("acknowledged of the good events sent", sent.events, sent.acknowledged),
        Line("garbage requests refused", sent.garbage, sent.refused),
        Line("messages in the stream", len(sent.unique) + sum(sent.direct.values()), stream_messages(stack)),
        Line("repeats recognised at the door", sent.events - len(sent.unique), sent.repeated),
        Line("repeats recognised by the ledger", sent.direct["duplicate"], ledger["duplicate"]),
        Line("dead letters", sent.direct["dead"], ledger["dead"]),
        Line("events counted", unique, ledger["accepted"]),
        Line("events delivered", unique, ledger["delivered"]),
        Line("different events OpenMeter has", unique, stats["unique"]),
        Line("tokens, by our reads (OpenMeter SDK)", sent.tokens, _usage(_reads(stack), "tokens")),
        Line("tokens, by OpenMeter (OpenMeter SDK)", sent.tokens, _usage(_openmeter(stack), "tokens")),
        Line("calls, by our reads (OpenMeter SDK)", unique, _usage(_reads(stack), "llm_calls")),
    ]


def _reads(stack: Stack) -> Client:
    return Client(endpoint=stack.reads.url, token=stack.keys[TENANT])


def _openmeter(stack: Stack) -> Client:
    return Client(endpoint=stack.openmeter.url, token=stack.openmeter.token)


def _usage(client: Any, slug: str) -> int | Decimal:
    """A meter's total for the tenant, asked with the official SDK."""
    answer = client.meters.query_json(slug, subject=[TENANT])
    total = sum(Decimal(str(row.value)) for row in answer.data)
    return int(total) if total == int(total) else total
