"""`kgents-metering erase`: a tenant's personal data goes, and the books stay right.

Messages are found by what they say, not by where the ledger saw them: a restore makes the stream anew, and
what another history held stands at other sequences in it.
"""

from __future__ import annotations

import argparse
import asyncio
import getpass
import socket
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from nats.errors import Error as NatsError
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from kgents_common import rfc3339, streams, subjects
from kgents_common.connection import Client, Connection
from kgents_common.errors import PermanentError, TransientError
from kgents_common.pull import Forward, stored
from kgents_common.streams import JetStreamApiError
from kgents_metering.model.event import Event, Message, classify
from kgents_metering.settings import MeteringSettings
from kgents_metering.sinks.ledger.erasing import Erasing, Letters, Scope

CONNECT_SECONDS = 10
BATCH = 500
BATCH_BYTES = 8 * 1024 * 1024
FORGOTTEN_AFTER = timedelta(seconds=30)
EPOCH = datetime.fromtimestamp(0, UTC)  # of no stream: messages are known by what they say
NOT_HERE = """\
Not erased, as it is part of the books or not metering's: what meters measure (values and groups), OpenMeter's
copies, copies of dead letters on EVENTS (35 days), backups until their retention ends, streams that a restore
kept (`kgents-backup discard`), what billing keeps. Run it again for what comes to the ledger later, and after
a restore."""

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
        events = conflicts = 0
        while (found := await erasing.events(scope)).rows:
            conflicts += await erasing.erase_events(found)
            events += len(found.rows)
        letters = await erasing.letters(scope)
        messages = await _erase_messages(connection, erasing, scope.tenant, letters)
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


async def _erase_messages(connection: Connection, erasing: Erasing, tenant: str, letters: Letters) -> int:
    """Delete the tenant's messages that the ledger has as erased from the stream, overwriting them; how many.

    Also those that an earlier run left, having ended halfway or before a restore brought them back.
    """
    client = connection.client
    last = (await streams.request(client, f"STREAM.INFO.{subjects.AGENTESE}"))["state"]["last_seq"]
    try:
        forward = await Forward.opened(
            client,
            subjects.AGENTESE,
            start=1,
            filter_subject=f"agentese.{tenant}.>",
            description="What is erased",
            inactive=FORGOTTEN_AFTER,
        )
        erased = reached = 0
        try:
            while reached < last and not forward.is_at_end:
                found = await forward.batch(
                    limit=BATCH, wait=None, max_bytes=max(BATCH_BYTES, 2 * client.max_payload)
                )
                messages = [stored(message, place, EPOCH, Message) for message, place in found]
                for seq in await _to_erase(erasing, messages, letters):
                    await _delete(client, seq)
                    erased += 1
                reached = messages[-1].seq if messages else reached
                if forward.is_lost:
                    raise TransientError("jetstream: the consumer was lost", hint="run it again")
        finally:
            await forward.close()
    except (NatsError, OSError) as error:
        raise TransientError(f"nats: {type(error).__name__}", hint="run it again") from error
    return erased


async def _to_erase(erasing: Erasing, messages: Sequence[Message], letters: Letters) -> list[int]:
    """The sequences of those whose event is erased, and of those that are dead letters of the scope."""
    keys: dict[int, bytes] = {}
    found: list[int] = []
    for message in messages:
        event = classify(message)
        if isinstance(event, Event):
            keys[message.seq] = event.key
        elif letters.has(message.body, message.received_at):
            found.append(message.seq)
    erased = await erasing.erased(set(keys.values()))
    return sorted([*found, *(seq for seq, key in keys.items() if key in erased)])


async def _delete(client: Client, seq: int) -> None:
    try:
        await streams.request(client, f"STREAM.MSG.DELETE.{subjects.AGENTESE}", {"seq": seq})
    except JetStreamApiError as error:
        if error.code not in (400, 404):  # it is gone already
            raise
