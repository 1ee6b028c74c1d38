"""`kgents-metering conflicts`: what contradicts an event that was counted, listed and shown."""

from __future__ import annotations

import argparse
from typing import Any

from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from kgents_common import shown
from kgents_metering.settings import MeteringSettings
from kgents_metering.sinks.ledger.conflicts import Conflicts

SHOWN_BODY_BYTES = 4096

Pool = AsyncConnectionPool[AsyncConnection]


def add_to(commands: Any) -> None:
    """Add the command to the parser's subcommands."""
    what = commands.add_parser("conflicts", help="events that contradict one that was counted")
    verbs = what.add_subparsers(required=True, metavar="what")
    listing = verbs.add_parser("list", help="one line each")
    listing.add_argument("--tenant")
    listing.add_argument("--source")
    listing.add_argument("--after", type=int, default=0, metavar="ID")
    listing.add_argument("--limit", type=int, default=100)
    listing.set_defaults(command=_list)
    show = verbs.add_parser("show", help="one, whole, beside the event that was counted")
    show.add_argument("id", type=int)
    show.set_defaults(command=_show)


async def _list(arguments: argparse.Namespace, _: MeteringSettings, pool: Pool) -> int:
    found = await Conflicts(pool).find(
        tenant=arguments.tenant, source=arguments.source, after=arguments.after, limit=arguments.limit
    )
    for one in found:
        print(
            f"{one.id:>8}  seq {one.seq:<10}  {one.at:%Y-%m-%d %H:%M:%S}  {one.tenant}"
            f"  {shown.line(one.source)}  {shown.line(one.ce_id)}  counted: seq {one.counted_seq}"
        )
    if not found:
        print("none")
    return 0


async def _show(arguments: argparse.Namespace, _: MeteringSettings, pool: Pool) -> int:
    one = await Conflicts(pool).get(arguments.id)
    for name in ("id", "tenant", "source", "ce_id", "epoch", "seq", "stored_at", "at"):
        print(f"{name:10} {shown.line(getattr(one, name))}")
    body = bytes(one.body)
    print(f"body       {len(body)} bytes")
    print(shown.body(body[:SHOWN_BODY_BYTES]))
    print(
        f"counted    seq {one.counted_seq} of {one.counted_epoch}:"
        f" {shown.line(one.counted_type)}, {one.counted_time}"
    )
    print(shown.body(one.counted_data.encode()[:SHOWN_BODY_BYTES]))
    return 0
