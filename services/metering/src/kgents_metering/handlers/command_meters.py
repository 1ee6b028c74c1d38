"""`kgents-metering meters`: what is in force, what a file would change, and changing it."""

from __future__ import annotations

import argparse
import getpass
import socket
from pathlib import Path
from typing import Any

from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from kgents_common import database
from kgents_metering.settings import MeteringSettings
from kgents_metering.sinks.ledger import meter_changes, meters, schema
from kgents_metering.sinks.meters_file import load_meters

Pool = AsyncConnectionPool[AsyncConnection]


def add_to(commands: Any) -> None:
    """Add the command to the parser's subcommands."""
    what = commands.add_parser("meters", help="the meters in force, and those of a file")
    verbs = what.add_subparsers(required=True, metavar="what")
    verbs.add_parser("list", help="those in force, and how far each is measured").set_defaults(command=_list)
    for name, explained in (("plan", "what applying would change"), ("apply", "put them in force")):
        verb = verbs.add_parser(name, help=explained)
        verb.add_argument("--file", type=Path, help="else KGENTS_METERS_FILE")
        verb.add_argument("--force", action="store_true", help="also where a newer version is in force")
        verb.set_defaults(command=_apply, is_plan=name == "plan")


async def _list(_: argparse.Namespace, __: MeteringSettings, pool: Pool) -> int:
    for slug, event_type, aggregation, after, to in await meters.progress(pool):
        share = "measured" if after >= to else f"{after / to:.0%} of history measured"
        print(f"{slug:32}  {aggregation:12}  {event_type:32}  {share}")
    return 0


async def _apply(arguments: argparse.Namespace, settings: MeteringSettings, pool: Pool) -> int:
    wanted = load_meters(arguments.file or settings.meters_file)
    if not arguments.is_plan:  # a Job may come before any process
        await database.migrate(settings.database_url, package=schema.PACKAGE, schema=schema.NAME)
    actor = f"{getpass.getuser()}@{socket.gethostname()}"
    changes = await meter_changes.apply(
        pool, wanted, actor=actor, is_plan=arguments.is_plan, is_forced=arguments.force
    )
    print("\n".join(map(str, changes)) or "nothing to do")
    return 0
