"""The demo's last part: everything is lost, one command brings it back, and every number is as it was."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

import nats
import psycopg
from rich.console import Console

from kgents_devstack.demo.report import Line, show
from kgents_devstack.demo.watch import ledger_counts, stream_messages
from kgents_devstack.stack import Stack

STREAMS = ("AGENTESE", "EVENTS")
WRITERS = ("billing", "reads", "metering")
SETTLE_SECONDS = 180.0
# How an event ended may be told otherwise when it comes a second time; what counts may not.
COUNTED = ("accepted", "conflict", "dead", "delivered", "owed")


def run(
    console: Console, stack: Stack, *, more: Callable[[], None], usage: Callable[[], Mapping[str, object]]
) -> bool:
    """Back up, go on, lose streams and databases, restore; whether every number is as it was.

    Args:
        more: Sends events after the backup, and waits until they are counted and delivered.
        usage: What reads and OpenMeter say.
    """
    console.print("everything is lost: back up, go on, then delete both streams and both databases")
    if not _told(console, stack, "snapshot", "dump"):
        return False
    more()
    # Stopped, it stores what it read and lets go; what came last is archived by the command.
    stack.service("backup").stop()
    if not _told(console, stack, "archive --once"):
        return False
    before = _numbers(stack, usage)
    for name in WRITERS:
        stack.service(name).stop()
    asyncio.run(_lose_streams(stack.nats.url))
    _lose_databases(stack.database_url)
    console.print("lost; one command:", end=" ")
    began = time.monotonic()
    if not _told(console, stack, "restore --system"):
        return False
    for name in reversed((*WRITERS, "backup")):
        stack.service(name).start()
    after = _settled(stack, usage, before)
    lines = [Line(what, value, after[what]) for what, value in before.items()]
    show(console, "everything was lost, and is back", lines)
    console.print(f"back, counted and compared {time.monotonic() - began:.1f} s after the loss\n")
    return all(line.agrees for line in lines)


def _told(console: Console, stack: Stack, *commands: str) -> bool:
    """Run backup's commands as an operator would; whether all of them did what they say."""
    for command in commands:
        console.print(f"$ kgents-backup {command}", highlight=False, markup=False)
        made = stack.command("backup", *command.split())
        console.print(made.stdout.strip(), highlight=False, markup=False, soft_wrap=True)
        if made.returncode != 0:
            console.print(made.stderr.strip(), style="red", highlight=False, markup=False)
            return False
    return True


def _numbers(stack: Stack, usage: Callable[[], Mapping[str, object]]) -> dict[str, object]:
    ledger = ledger_counts(stack.database_url)
    with psycopg.connect(stack.database_url) as connection:
        subscriptions = connection.execute("select count(*) from billing.applied").fetchone()
    return {
        "events in AGENTESE": stream_messages(stack),
        **{f"events {name}": ledger[name] for name in COUNTED},
        "objects that billing knows": subscriptions[0] if subscriptions else 0,
        "different events OpenMeter has": stack.openmeter.stats()["unique"],
        **usage(),
    }


def _settled(
    stack: Stack, usage: Callable[[], Mapping[str, object]], wanted: Mapping[str, object]
) -> dict[str, object]:
    """The numbers once they are as they were, or when nothing helps any more."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        found = _numbers(stack, usage)
        if found == wanted or time.monotonic() > deadline:
            return found
        time.sleep(0.5)


async def _lose_streams(url: str) -> None:
    client = await nats.connect(url)
    for stream in STREAMS:
        await client.jetstream().delete_stream(stream)
    await client.close()


def _lose_databases(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("drop schema metering cascade")
        connection.execute("drop schema billing cascade")
