"""`python -m kgents_common.streams plan|apply`: the deployment's way to the streams; it serves nothing."""

from __future__ import annotations

import argparse
import asyncio
import sys

from kgents_common import streams
from kgents_common.connection import Connection
from kgents_common.errors import KgentsError
from kgents_common.settings import ServiceSettings


async def _run(command: str, replicas: int, max_bytes: int | None) -> int:
    connection = Connection(ServiceSettings.from_environment(), name="streams", on_closed=lambda: None)
    await connection.start()
    try:
        async with asyncio.timeout(30):
            await connection.wait()
        wanted = streams.scaled(streams.STREAMS, max_bytes) if max_bytes else streams.STREAMS
        changes = await streams.plan(connection.client, replicas=replicas, streams=wanted)
        for change in changes:
            print(change)
        if command == "apply":
            await streams.apply(connection.client, changes)
        return 0
    finally:
        await connection.stop()


def main() -> int:
    """Print the plan; with `apply`, carry it out. 1 on a refusal or an error, with what to do next."""
    parser = argparse.ArgumentParser(prog="python -m kgents_common.streams", description=main.__doc__)
    parser.add_argument("command", choices=("plan", "apply"))
    parser.add_argument("--replicas", type=int, default=1, help="3 in a cluster of three")
    parser.add_argument("--max-bytes", type=int, help="each stream's limit, instead of the specification's")
    arguments = parser.parse_args()
    try:
        return asyncio.run(_run(arguments.command, arguments.replicas, arguments.max_bytes))
    except (KgentsError, TimeoutError) as error:
        print(f"error: {str(error) or 'NATS does not answer'}", file=sys.stderr)
        if isinstance(error, KgentsError) and error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
