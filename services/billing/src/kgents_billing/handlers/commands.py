"""The operator's commands: dead letters, what waits for its tenant, migrations; replays are beside it."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from kgents_billing.handlers import command_money, command_owners, command_replay
from kgents_billing.handlers.command_tools import Tools
from kgents_billing.handlers.process import Processor
from kgents_billing.handlers.replay import replay_letter
from kgents_billing.metrics import Metrics
from kgents_billing.settings import BillingSettings
from kgents_billing.sinks.store import Letters, Store
from kgents_billing.sinks.stripe_api import StripeApi
from kgents_common import database, shown
from kgents_common.clock import SystemClock
from kgents_common.crash import CrashPoints
from kgents_common.dead_letters import add_dead_commands, discard_letter, list_letters, print_letter
from kgents_common.errors import KgentsError, PermanentError
from kgents_common.keyring import Keyring
from kgents_common.telemetry import configure_logs, new_registry

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
        options = settings.options()
        knows = Keyring(settings.keyring_file).has_tenant
        crash_points = CrashPoints(settings.crash_at)
        processor = Processor(Store(pool, crash_points, knows), stripe, options=options, metrics=metrics)
        command: Command = parsed.command
        return await command(
            parsed,
            Tools(settings, pool, Letters(pool), processor, stripe, metrics, knows, stack, crash_points),
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kgents-billing", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")

    add_dead_commands(
        commands,
        list_=lambda arguments, tools: list_letters(tools.letters, arguments),
        show=_dead_show,
        replay=_dead_replay,
        discard=lambda arguments, tools: discard_letter(tools.letters, arguments),
    )

    waiting = commands.add_parser("quarantine", help="events whose tenant is not known (yet)")
    waiting.add_argument("--limit", type=int, default=100)
    waiting.set_defaults(command=_quarantine)

    command_replay.add_to(commands)
    command_owners.add_to(commands)
    command_money.add_to(commands)
    migrate = commands.add_parser("migrate", help="bring the schema up to date")
    migrate.set_defaults(command=_migrate)
    return parser


async def _dead_show(arguments: argparse.Namespace, tools: Tools) -> int:
    return print_letter(await tools.letters.get(arguments.id), "event_id", "type")


async def _dead_replay(arguments: argparse.Namespace, tools: Tools) -> int:
    letter = await tools.letters.get(arguments.id)
    if letter.state != "open":
        raise PermanentError(f"dead letter {letter.id} is {letter.state}")
    body = arguments.body.read_bytes() if arguments.body else bytes(letter.body)
    committed = await replay_letter(tools.processor, tools.letters, letter, body)
    print(f"{letter.event_id or letter.id}: {committed.outcome.value}, {committed.facts} new facts")
    return 0


async def _quarantine(arguments: argparse.Namespace, tools: Tools) -> int:
    found = await tools.letters.waiting(arguments.limit)
    for one in found:
        print(
            f"{shown.line(one.event_id):30}  {shown.line(one.type):40}  {one.reason:16}"
            f"  since {one.first_at:%Y-%m-%d %H:%M:%S}  {one.tries} tries"
            f"  customer {shown.line(one.customer or '-')}"
            + (f"  named {shown.line(one.named)}" if one.named else "")
        )
    if not found:
        print("none")
    return 0


async def _migrate(_: argparse.Namespace, tools: Tools) -> int:
    ran = await database.migrate(
        tools.settings.database_url, package="kgents_billing.schema", schema="billing"
    )
    print("\n".join(ran) or "up to date")
    return 0
