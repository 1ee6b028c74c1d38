"""`python -m kgents_common.streams plan|apply`: the deployment's way to the streams; it serves nothing."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys

from kgents_common import streams
from kgents_common.connection import Connection
from kgents_common.errors import KgentsError
from kgents_common.settings import ServiceSettings
from kgents_common.streams import StreamSpec


async def _run(command: str, replicas: int, wanted: tuple[StreamSpec, ...]) -> int:
    connection = Connection(ServiceSettings.from_environment(), name="streams", on_closed=lambda: None)
    await connection.start()
    try:
        async with asyncio.timeout(30):
            await connection.wait()
        changes = await streams.plan(connection.client, replicas=replicas, streams=wanted)
        for change in changes:
            print(change)
        if command == "apply":
            await streams.apply(connection.client, changes)
        return 0
    finally:
        await connection.stop()


def _wanted(arguments: argparse.Namespace) -> tuple[StreamSpec, ...]:
    found: tuple[StreamSpec, ...] = streams.STREAMS
    if arguments.max_bytes:
        found = streams.scaled(found, arguments.max_bytes)
    if arguments.events_per_second:
        sized = streams.for_rate(
            streams.AGENTESE,
            events_per_second=arguments.events_per_second,
            event_bytes=arguments.event_bytes,
            days=arguments.days,
        )
        gib, rate = sized.max_bytes / streams.specification.GIB, arguments.events_per_second
        print(f"AGENTESE  {gib:.1f} GiB: {sized.max_age.days} days of {rate:g} events a second")
        found = tuple(sized if spec.name == sized.name else spec for spec in found)
    return found


def main() -> int:
    """Print the plan; with `apply`, carry it out. 1 on a refusal or an error, with what to do next."""
    parser = argparse.ArgumentParser(prog="python -m kgents_common.streams", description=main.__doc__)
    parser.add_argument("command", choices=("plan", "apply"))
    parser.add_argument("--replicas", type=int, default=1, help="3 in a cluster of three")
    parser.add_argument("--max-bytes", type=int, help="each stream's limit, instead of the specification's")
    parser.add_argument(
        "--events-per-second",
        type=float,
        default=os.environ.get("KGENTS_EVENTS_PER_SECOND"),
        help="what AGENTESE must take in the long run; its size follows (else KGENTS_EVENTS_PER_SECOND)",
    )
    parser.add_argument("--event-bytes", type=int, default=600, help="of a message on average (default 600)")
    parser.add_argument("--days", type=float, help="how long AGENTESE keeps messages (default 30)")
    arguments = parser.parse_args()
    try:
        return asyncio.run(_run(arguments.command, arguments.replicas, _wanted(arguments)))
    except (KgentsError, TimeoutError) as error:
        print(f"error: {str(error) or 'NATS does not answer'}", file=sys.stderr)
        if isinstance(error, KgentsError) and error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
