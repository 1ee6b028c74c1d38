"""`kgents-metering erase`: a tenant's personal data goes, and the books stay right."""

from __future__ import annotations

import argparse
import asyncio
import getpass
import socket
from datetime import UTC, datetime
from typing import Any

from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from kgents_common import rfc3339, streams, subjects
from kgents_common.connection import Connection
from kgents_common.errors import PermanentError
from kgents_common.streams import JetStreamApiError
from kgents_metering.settings import MeteringSettings
from kgents_metering.sinks.ledger.erasing import Erasing, Scope

CONNECT_SECONDS = 10
NOT_HERE = """\
Not erased, as it is part of the books or not metering's: what meters measure (values and groups), OpenMeter's
copies, copies of dead letters on EVENTS (35 days), backups until their retention ends, what billing keeps.
Run it again for what comes to the ledger later."""

Pool = AsyncConnectionPool[AsyncConnection]


def add_to(commands: Any) -> None:
    """Add the command to the parser's subcommands."""
    erase = commands.add_parser(
        "erase", help="erase what a tenant's events say beyond what is measured; totals and duplicates stay"
    )
    erase.add_argument("--tenant", required=True)
    erase.add_argument("--source", help="of this source alone")
    erase.add_argument("--before", metavar="TIME", help="what happened before (RFC 3339); all so far without")
    erase.add_argument("--reason", required=True, help="kept in metering.erasure; name nobody in it")
    erase.set_defaults(command=_erase)


async def _erase(arguments: argparse.Namespace, settings: MeteringSettings, pool: Pool) -> int:
    if not subjects.is_tenant(arguments.tenant):
        raise PermanentError(f"{arguments.tenant!a} is no tenant: {subjects.TENANT_RULE}")
    try:
        before = rfc3339.moment(arguments.before) if arguments.before else datetime.now(UTC)
    except ValueError:
        raise PermanentError("--before: must be an RFC 3339 date and time with a zone") from None
    scope = Scope(arguments.tenant, arguments.source, before)
    erasing = Erasing(pool)
    connection = Connection(settings, name="kgents-metering-cli", on_closed=lambda: None)
    await connection.start()
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            await connection.wait()
        events = conflicts = messages = 0
        while (found := await erasing.events(scope)).rows:
            messages += await _erase_messages(connection, found.places)
            conflicts += await erasing.erase_events(found)
            events += len(found.rows)
        letters = await erasing.letters(scope)
        messages += await _erase_messages(connection, letters.places)
        await erasing.erase_letters(letters, arguments.reason)
        actor = f"{getpass.getuser()}@{socket.gethostname()}"
        counts = (events, conflicts, len(letters.rows), messages)
        await erasing.record(scope, actor=actor, reason=arguments.reason, counts=counts)
    except TimeoutError as error:
        raise PermanentError("NATS does not answer", hint="check NATS_SERVERS") from error
    finally:
        await connection.stop()
    told = f"{events} events, {conflicts} conflicts, {len(letters.rows)} dead letters"
    print(f"erased: {told}; {messages} messages of the stream")
    print(NOT_HERE)
    return 0


async def _erase_messages(connection: Connection, places: list[tuple[datetime, int]]) -> int:
    """Delete the messages from the stream, overwriting them; how many it still held."""
    info = await streams.request(connection.client, f"STREAM.INFO.{subjects.AGENTESE}")
    epoch, first = rfc3339.moment(info["created"]), int(info["state"]["first_seq"])
    erased = 0
    for created, seq in places:
        if created != epoch or seq < first:
            continue
        try:
            await streams.request(connection.client, f"STREAM.MSG.DELETE.{subjects.AGENTESE}", {"seq": seq})
            erased += 1
        except JetStreamApiError as error:
            if error.code not in (400, 404):  # it is gone already
                raise
    return erased
