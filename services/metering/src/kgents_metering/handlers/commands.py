"""The operator's commands: dead letters, what OpenMeter refused, gaps, reconciliation, migrations."""

from __future__ import annotations

import argparse
import asyncio
import sys
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from kgents_common import database, shown, streams
from kgents_common.clock import SystemClock
from kgents_common.connection import Connection
from kgents_common.dead_letters import (
    DeadLetter,
    DeadLetters,
    add_dead_commands,
    discard_letter,
    list_letters,
    print_letter,
)
from kgents_common.errors import KgentsError, PermanentError
from kgents_common.publisher import Publisher
from kgents_common.telemetry import configure_logs
from kgents_metering.handlers import command_conflicts, command_erase, command_meters, command_restored
from kgents_metering.handlers.proof import prove
from kgents_metering.settings import MeteringSettings
from kgents_metering.sinks.ledger.gaps import gaps
from kgents_metering.sinks.ledger.settlement import Settlement
from kgents_metering.sinks.openmeter import OpenMeter

TARGET = "openmeter"

Pool = AsyncConnectionPool[AsyncConnection]
Command = Callable[[argparse.Namespace, MeteringSettings, Pool], Awaitable[int]]


def run_command(arguments: list[str]) -> int:
    """Run one command; 0 when it did what it says, 1 on an error or (reconcile) a difference."""
    parsed = _parser().parse_args(arguments)
    try:
        settings = MeteringSettings.from_environment()
        configure_logs(service="metering", instance=settings.instance, level="error", to=sys.stderr)
        return asyncio.run(_with_pool(parsed, settings))
    except KgentsError as error:
        print(f"error: {error}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return 1


async def _with_pool(parsed: argparse.Namespace, settings: MeteringSettings) -> int:
    pool = database.make_pool(settings.database_url, application="kgents-metering-cli", max_size=2)
    await pool.open()
    try:
        command: Command = parsed.command
        return await command(parsed, settings, pool)
    finally:
        await pool.close()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kgents-metering", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")

    replay = add_dead_commands(
        commands,
        list_=lambda arguments, _, pool: list_letters(_letters(pool), arguments),
        show=_dead_show,
        replay=_dead_replay,
        discard=lambda arguments, _, pool: discard_letter(_letters(pool), arguments),
    )
    replay.add_argument("--subject", help="instead of the original subject")

    command_conflicts.add_to(commands)
    command_restored.add_to(commands)
    command_meters.add_to(commands)
    command_erase.add_to(commands)

    refused = commands.add_parser("outbox", help="events OpenMeter refuses").add_subparsers(
        required=True, metavar="what"
    )
    refused_list = refused.add_parser("list", help="one line each")
    refused_list.add_argument("--limit", type=int, default=100)
    refused_list.set_defaults(command=_refused_list)
    retry = refused.add_parser("retry", help="deliver them again (all where none is named)")
    retry.add_argument("n", type=int, nargs="*")
    retry.set_defaults(command=_refused_retry)
    forgo = refused.add_parser("forgo", help="give up delivering them; they stay counted here")
    forgo.add_argument("n", type=int, nargs="+")
    forgo.add_argument("--reason", required=True)
    forgo.set_defaults(command=_refused_forgo)

    gap = commands.add_parser("gaps", help="sequences of the stream that were never applied")
    gap.set_defaults(command=_gaps)
    migrate = commands.add_parser("migrate", help="bring the schema up to date")
    migrate.set_defaults(command=_migrate)
    compare = commands.add_parser("reconcile", help="compare ledger and OpenMeter by tenant, meter and hour")
    compare.add_argument("--hours", type=_hours, default=24, help="how far back (default 24)")
    compare.add_argument("--repair", action="store_true", help="send again what OpenMeter does not have")
    compare.set_defaults(command=_reconcile)
    return parser


def _hours(text: str) -> int:
    hours = int(text)
    if not 1 <= hours <= 100 * 366 * 24:
        raise argparse.ArgumentTypeError("hours are from 1 to a century's")
    return hours


def _letters(pool: Pool) -> DeadLetters[DeadLetter]:
    return DeadLetters(pool, "metering", DeadLetter)


async def _dead_show(arguments: argparse.Namespace, _: MeteringSettings, pool: Pool) -> int:
    return print_letter(await _letters(pool).get(arguments.id))


async def _dead_replay(arguments: argparse.Namespace, settings: MeteringSettings, pool: Pool) -> int:
    letters = _letters(pool)
    letter = await letters.get(arguments.id)
    if letter.state != "open":
        raise PermanentError(f"dead letter {letter.id} is {letter.state}")
    try:
        body = arguments.body.read_bytes() if arguments.body else bytes(letter.body)
    except OSError as error:
        raise PermanentError(f"{arguments.body} cannot be read: {error.strerror}") from error
    subject = arguments.subject or letter.subject
    if any(token in ("*", ">") for token in subject.split(".")):
        raise PermanentError(
            f"{shown.line(subject)} is no subject to publish to", hint="give another: --subject"
        )
    connection = Connection(settings, name="kgents-metering-cli", on_closed=lambda: None)
    publisher = Publisher(connection)
    await connection.start()
    try:
        async with asyncio.timeout(10):
            await connection.wait()
        await publisher.start()
        # A fresh id: the stream has seen the original's, and the ledger judges by the event's own identity.
        ack = await publisher.publish(
            subject,
            body,
            message_id=f"replay:{letter.id}:{uuid.uuid4().hex}",
            headers={"Kgents-Replay-Of": str(letter.id)},
        )
        await publisher.stop()
    except TimeoutError as error:
        raise PermanentError("NATS does not answer", hint="check NATS_SERVERS") from error
    finally:
        await connection.stop()
    await letters.settle(letter.id, state="replayed", replay_seq=ack.seq)
    print(f"replayed as sequence {ack.seq} of {ack.stream}")
    return 0


async def _refused_list(arguments: argparse.Namespace, _: MeteringSettings, pool: Pool) -> int:
    rows = await Settlement(pool, TARGET).refused(arguments.limit)
    for row in rows:
        print(
            f"{row.n:>10}  {row.tenant}  {row.type}  {row.time:%Y-%m-%d %H:%M:%S}"
            f"  {row.last_code}  {shown.line(row.last_detail)}"
        )
    if not rows:
        print("none")
    return 0


async def _refused_retry(arguments: argparse.Namespace, _: MeteringSettings, pool: Pool) -> int:
    print(f"{await Settlement(pool, TARGET).retry(arguments.n)} will be sent again")
    return 0


async def _refused_forgo(arguments: argparse.Namespace, _: MeteringSettings, pool: Pool) -> int:
    print(f"{await Settlement(pool, TARGET).forgo(arguments.n, arguments.reason)} will not be sent")
    return 0


async def _gaps(_: argparse.Namespace, __: MeteringSettings, pool: Pool) -> int:
    found = await gaps(pool, streams.METERING.stream)
    for epoch, first, last in found:
        print(f"epoch {epoch.isoformat()}  {first}..{last}  {last - first + 1} missing")
    if not found:
        print("none")
    return 0


async def _migrate(_: argparse.Namespace, settings: MeteringSettings, __: Pool) -> int:
    ran = await database.migrate(settings.database_url, package="kgents_metering.schema", schema="metering")
    print("\n".join(ran) or "nothing to do")
    return 0


async def _reconcile(arguments: argparse.Namespace, settings: MeteringSettings, pool: Pool) -> int:
    if settings.openmeter_base_url is None:
        raise PermanentError("no OpenMeter is configured", hint="set OPENMETER_BASE_URL")
    key = settings.openmeter_api_key
    openmeter = OpenMeter(
        base_url=settings.openmeter_base_url,
        token=key.get_secret_value() if key else None,
        version=settings.openmeter_version,
        clock=SystemClock(),
        timeout=timedelta(seconds=settings.openmeter_timeout_seconds),
    )
    try:
        report = await prove(
            pool,
            openmeter,
            Settlement(pool, TARGET),
            hours=arguments.hours,
            now=datetime.now(UTC),
            repair=arguments.repair,
        )
    finally:
        await openmeter.close()
    for line in report.lines():
        print(line)
    return 0 if report.agrees else 1
