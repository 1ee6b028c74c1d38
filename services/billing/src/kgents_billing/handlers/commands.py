"""The operator's commands: dead letters, what waits for its tenant, replays, looks at Stripe, migrations."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from kgents_billing.handlers.process import Processor
from kgents_billing.handlers.reconcile import Poll, Survey
from kgents_billing.handlers.replay import Wanted, replay, stored_events
from kgents_billing.metrics import Metrics
from kgents_billing.model.decision import Options, Outcome
from kgents_billing.model.moments import parse_moment
from kgents_billing.settings import BillingSettings
from kgents_billing.sinks.bus import Bus
from kgents_billing.sinks.store import DeadLetter, Letters, Origin, Store, Subscriptions
from kgents_billing.sinks.store.cursors import Cursors
from kgents_billing.sinks.stripe_api import StripeApi
from kgents_common import database
from kgents_common.clock import SystemClock
from kgents_common.connection import Connection
from kgents_common.crash import CrashPoints
from kgents_common.errors import ConfigurationError, KgentsError, PermanentError
from kgents_common.publisher import Publisher
from kgents_common.telemetry import configure_logs, new_registry

SHOWN_BODY_BYTES = 4096
ASK_ABOVE = 1000

Pool = AsyncConnectionPool[AsyncConnection]


@dataclass(frozen=True, slots=True)
class Tools:
    """What commands work with."""

    settings: BillingSettings
    pool: Pool
    letters: Letters
    processor: Processor
    stripe: StripeApi | None
    metrics: Metrics
    stack: AsyncExitStack

    async def connected(self) -> tuple[Connection, Bus]:
        """NATS, for the commands that need it.

        Raises:
            TransientError: No server answers within ten seconds.
        """
        connection = Connection(self.settings, name="kgents-billing-cli", on_closed=lambda: None)
        publisher = Publisher(connection)
        await connection.start()
        self.stack.push_async_callback(connection.stop)
        async with asyncio.timeout(10):
            await connection.wait()
        await publisher.start()
        self.stack.push_async_callback(publisher.stop)
        return connection, Bus(connection, publisher)

    def asked_stripe(self) -> StripeApi:
        """Stripe, for the commands that need it.

        Raises:
            ConfigurationError: No key is configured.
        """
        if self.stripe is None:
            raise ConfigurationError("this needs Stripe", hint="set STRIPE_API_KEY")
        return self.stripe


Command = Callable[[argparse.Namespace, Tools], Awaitable[int]]


def run_command(arguments: list[str]) -> int:
    """Run one command; 0 when it did what it says, 1 on an error."""
    parsed = _parser().parse_args(arguments)
    try:
        settings = BillingSettings.from_environment()
        configure_logs(service="billing", instance=settings.instance, level="error", to=sys.stderr)
        return asyncio.run(_with_tools(parsed, settings))
    except TimeoutError:
        print("error: NATS does not answer\nhint: check NATS_SERVERS", file=sys.stderr)
    except KgentsError as error:
        print(f"error: {error}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
    return 1


async def _with_tools(parsed: argparse.Namespace, settings: BillingSettings) -> int:
    async with AsyncExitStack() as stack:
        pool = database.make_pool(settings.database_url, application="kgents-billing-cli", max_size=2)
        await pool.open()
        stack.push_async_callback(pool.close)
        metrics = Metrics(new_registry())
        stripe = None
        if settings.stripe_api_key is not None:
            stripe = StripeApi(
                settings.stripe_api_key.get_secret_value(),
                base_url=settings.stripe_api_base,
                clock=SystemClock(),
                per_second=settings.stripe_per_second,
            )
            stack.push_async_callback(stripe.close)
        options = Options(settings.refunds_from_charges, settings.tells_zero_payments)
        processor = Processor(Store(pool, CrashPoints(None)), stripe, options=options, metrics=metrics)
        command: Command = parsed.command
        return await command(parsed, Tools(settings, pool, Letters(pool), processor, stripe, metrics, stack))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kgents-billing", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")

    dead = commands.add_parser("dead", help="dead letters").add_subparsers(required=True, metavar="what")
    listing = dead.add_parser("list", help="one line each")
    listing.add_argument("--state", choices=("open", "replayed", "discarded", "all"), default="open")
    listing.add_argument("--code", help="only this reason, e.g. unmapped_tenant")
    listing.add_argument("--after", type=int, default=0, metavar="ID")
    listing.add_argument("--limit", type=int, default=100)
    listing.set_defaults(command=_dead_list)
    show = dead.add_parser("show", help="one, whole (it may hold personal data)")
    show.add_argument("id", type=int)
    show.set_defaults(command=_dead_show)
    again = dead.add_parser("replay", help="handle it again, as it was or mended")
    again.add_argument("id", type=int)
    again.add_argument("--body", type=Path, metavar="FILE", help="the mended event")
    again.set_defaults(command=_dead_replay)
    discard = dead.add_parser("discard", help="settle it without handling it")
    discard.add_argument("id", type=int)
    discard.add_argument("--reason", required=True)
    discard.set_defaults(command=_dead_discard)

    waiting = commands.add_parser("quarantine", help="events whose tenant is not known (yet)")
    waiting.add_argument("--limit", type=int, default=100)
    waiting.set_defaults(command=_quarantine)

    replaying = commands.add_parser("replay", help="handle stored events again; facts are told once")
    replaying.add_argument("--source", choices=("stream", "stripe"), default="stream")
    replaying.add_argument("--event", action="append", default=[], metavar="EVT", help="only this one")
    replaying.add_argument("--type", action="append", default=[], metavar="TYPE", help="only this type")
    replaying.add_argument("--since", type=_moment, metavar="TIME", help="stored (or made) from this time on")
    replaying.add_argument("--until", type=_moment, metavar="TIME", help="stored up to this time")
    replaying.add_argument("--limit", type=int, default=None)
    replaying.add_argument("--force", action="store_true", help="also events that were applied before")
    replaying.add_argument("--dry-run", action="store_true", help="only say what would be handled")
    replaying.add_argument("--yes", action="store_true", help=f"do not ask above {ASK_ABOVE} events")
    replaying.set_defaults(command=_replay)

    reconcile = commands.add_parser("reconcile", help="compare with Stripe now")
    reconcile.add_argument("--since", type=_moment, metavar="TIME", help="events from this time on")
    reconcile.add_argument("--subscriptions", action="store_true", help="every subscription too")
    reconcile.set_defaults(command=_reconcile)
    migrate = commands.add_parser("migrate", help="bring the schema up to date")
    migrate.set_defaults(command=_migrate)
    return parser


def _moment(text: str) -> datetime:
    try:
        return parse_moment(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


async def _dead_list(arguments: argparse.Namespace, tools: Tools) -> int:
    state = None if arguments.state == "all" else arguments.state
    letters = await tools.letters.find(
        state=state, code=arguments.code, after=arguments.after, limit=arguments.limit
    )
    for letter in letters:
        print(
            f"{letter.id:>8}  {letter.state:9}  {letter.code:18}  {letter.event_id or '-':30}"
            f"  {letter.at:%Y-%m-%d %H:%M:%S}  {letter.type}  {letter.detail[:80]}"
        )
    if not letters:
        print("none")
    return 0


async def _dead_show(arguments: argparse.Namespace, tools: Tools) -> int:
    letter = await tools.letters.get(arguments.id)
    for name in ("id", "state", "code", "detail", "event_id", "type", "subject", "epoch", "seq", "at"):
        print(f"{name:10} {getattr(letter, name)}")
    for name in ("settled_at", "reason"):
        if getattr(letter, name) is not None:
            print(f"{name:10} {getattr(letter, name)}")
    body = bytes(letter.body)
    print(f"body       {len(body)} bytes")
    print(body[:SHOWN_BODY_BYTES].decode(errors="backslashreplace"))
    return 0


async def _dead_replay(arguments: argparse.Namespace, tools: Tools) -> int:
    letter = await tools.letters.get(arguments.id)
    if letter.state != "open":
        raise PermanentError(f"dead letter {letter.id} is {letter.state}")
    body = arguments.body.read_bytes() if arguments.body else bytes(letter.body)
    committed = await tools.processor.process(_origin(letter, body), again=True)
    if committed.outcome is Outcome.DEAD:
        raise PermanentError(
            f"dead letter {letter.id} is dead again: {letter.code}",
            hint="mend what it complains about, then discard it with a reason",
        )
    await tools.letters.settle(letter.id, state="replayed")
    print(f"{letter.event_id or letter.id}: {committed.outcome.value}, {committed.facts} new facts")
    return 0


async def _dead_discard(arguments: argparse.Namespace, tools: Tools) -> int:
    await tools.letters.settle(arguments.id, state="discarded", reason=arguments.reason)
    print(f"dead letter {arguments.id} is discarded")
    return 0


async def _quarantine(arguments: argparse.Namespace, tools: Tools) -> int:
    found = await tools.letters.waiting(arguments.limit)
    for one in found:
        print(
            f"{one.event_id:30}  {one.type:40}  {one.reason:16}  since {one.first_at:%Y-%m-%d %H:%M:%S}"
            f"  {one.tries} tries  customer {one.customer or '-'}"
        )
    if not found:
        print("none")
    return 0


async def _replay(arguments: argparse.Namespace, tools: Tools) -> int:
    if arguments.source == "stripe":
        if arguments.event or arguments.type or arguments.until or arguments.limit or arguments.force:
            raise PermanentError(
                "from Stripe, only --since and --dry-run narrow a replay",
                hint="what it brings into EVENTS can then be replayed with --source stream",
            )
        return await _reconcile(arguments, tools)
    connection, _ = await tools.connected()
    wanted = Wanted(
        ids=frozenset(arguments.event),
        types=frozenset(arguments.type),
        since=arguments.since,
        until=arguments.until,
        limit=arguments.limit,
    )
    origins = [origin async for origin in _bounded(stored_events(connection, wanted), wanted)]
    print(f"{len(origins)} events")
    if arguments.dry_run:
        for origin in origins:
            print(f"  seq {origin.seq:<10} {origin.subject}")
        return 0
    if len(origins) > ASK_ABOVE and not arguments.yes:
        raise PermanentError(f"{len(origins)} events are many", hint="look with --dry-run, then add --yes")
    for outcome, count in sorted((await replay(tools.processor, origins, again=arguments.force)).items()):
        print(f"  {count:>8} {outcome}")
    return 0


async def _bounded(origins: AsyncIterator[Origin], wanted: Wanted) -> AsyncIterator[Origin]:
    count = 0
    async for origin in origins:
        yield origin
        count += 1
        if wanted.limit is not None and count >= wanted.limit:
            return


async def _reconcile(arguments: argparse.Namespace, tools: Tools) -> int:
    stripe = tools.asked_stripe()
    _, bus = await tools.connected()
    poll = Poll(
        stripe,
        bus,
        Cursors(tools.pool),
        first_days=tools.settings.poll_first_days,
        metrics=tools.metrics,
        clock=SystemClock(),
    )
    if getattr(arguments, "dry_run", False):
        print(f"{await poll.count(_second(arguments.since))} events at Stripe would be offered to EVENTS")
        return 0
    recovered = await poll.run(_second(arguments.since))
    print(f"{recovered} events were missing and are stored now")
    if getattr(arguments, "subscriptions", False):
        survey = Survey(
            stripe,
            Store(tools.pool, CrashPoints(None)),
            Subscriptions(tools.pool),
            poll,
            tools.metrics,
            is_caught_up=bus.is_caught_up,
        )
        print(f"{await survey.run()} subscriptions were otherwise and are mended")
    return 0


async def _migrate(_: argparse.Namespace, tools: Tools) -> int:
    ran = await database.migrate(
        tools.settings.database_url, package="kgents_billing.schema", schema="billing"
    )
    print("\n".join(ran) or "up to date")
    return 0


def _origin(letter: DeadLetter, body: bytes) -> Origin:
    return Origin(letter.subject, body, letter.epoch, letter.seq)


def _second(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp())
