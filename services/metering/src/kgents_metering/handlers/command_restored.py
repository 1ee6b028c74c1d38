"""`kgents-metering generation` and `redeliver`: what an operator does after the database came back."""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from kgents_common.connection import Connection
from kgents_common.errors import PermanentError
from kgents_metering.handlers.positions import CONSUMERS, Positions
from kgents_metering.settings import MeteringSettings
from kgents_metering.sinks.ledger.generations import Generation, Generations

CONNECT_SECONDS = 10

Pool = AsyncConnectionPool[AsyncConnection]


def add_to(commands: Any) -> None:
    """Add the commands to the parser's subcommands."""
    generation = commands.add_parser("generation", help="of a ledger that came back from a dump")
    verbs = generation.add_subparsers(required=True, metavar="what")
    verbs.add_parser("list", help="one line each").set_defaults(command=_list)
    raise_ = verbs.add_parser(
        "raise", help="begin a new one: OpenMeter is asked for what is owed from before it is sent"
    )
    raise_.add_argument("--reason", required=True)
    raise_.set_defaults(command=_raise)
    redeliver = commands.add_parser(
        "redeliver", help="have the streams delivered again from where the ledger is; nothing counts twice"
    )
    redeliver.add_argument("--whole", action="store_true", help="from their first message")
    redeliver.add_argument("--dry-run", action="store_true", help="say it only")
    redeliver.set_defaults(command=_redeliver)


async def _list(_: argparse.Namespace, __: MeteringSettings, pool: Pool) -> int:
    found = await Generations(pool).find()
    for generation in found:
        print(_line(generation))
    if not found:
        print("none: this ledger never came back from a dump")
    return 0


async def _raise(arguments: argparse.Namespace, _: MeteringSettings, pool: Pool) -> int:
    print(_line(await Generations(pool).raise_(arguments.reason)))
    return 0


async def _redeliver(arguments: argparse.Namespace, settings: MeteringSettings, pool: Pool) -> int:
    connection = Connection(settings, name="kgents-metering-cli", on_closed=lambda: None)
    await connection.start()
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            await connection.wait()
        positions = Positions(pool, connection.client)
        for consumer in CONSUMERS:
            found = await positions.behind(consumer)
            if arguments.dry_run:
                print(found or f"{consumer.stream}/{consumer.name}: the ledger has all it acknowledged")
                continue
            if found is not None:
                # What comes again may have been delivered before the dump was loaded.
                await Generations(pool).raise_(str(found))
            start = await positions.redeliver(consumer, whole=arguments.whole)
            print(
                f"{consumer.stream}/{consumer.name}: delivered again from sequence {start}"
                if start
                else f"{consumer.stream}/{consumer.name}: the ledger has all it acknowledged"
            )
    except TimeoutError as error:
        raise PermanentError("NATS does not answer", hint="check NATS_SERVERS") from error
    finally:
        await connection.stop()
    return 0


def _line(generation: Generation) -> str:
    return (
        f"{generation.n:>4}  {generation.at:%Y-%m-%d %H:%M:%S}"
        f"  asks before it sends what is older than {generation.asked_until:%Y-%m-%d %H:%M:%S}"
        f"  {generation.reason}"
    )
