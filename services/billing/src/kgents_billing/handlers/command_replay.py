"""The operator's commands that handle events again, from the stream, the dead letters or Stripe."""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from datetime import datetime
from typing import Any

from kgents_billing.handlers.command_day import day_argument, reconcile_money
from kgents_billing.handlers.command_tools import Tools, moment_argument
from kgents_billing.handlers.poll import Poll
from kgents_billing.handlers.replay import (
    Choice,
    Chosen,
    Wanted,
    open_letters,
    replay,
    replay_letter,
    stored_events,
)
from kgents_billing.handlers.survey import Survey
from kgents_billing.sinks.bus import Bus
from kgents_billing.sinks.store import Committed, Store, Subscriptions
from kgents_billing.sinks.store.cursors import Cursors
from kgents_billing.sinks.store.owners import Owners
from kgents_common import shown
from kgents_common.clock import SystemClock
from kgents_common.errors import PermanentError

ASK_ABOVE = 1000


def add_to(commands: Any) -> None:
    """Add `replay` and `reconcile` to a parser's commands."""
    replaying = commands.add_parser("replay", help="handle events again; facts are told once")
    replaying.add_argument(
        "--source",
        choices=("stream", "dead", "stripe"),
        default="stream",
        help="what EVENTS holds, open dead letters, or what Stripe lists (stored where it is missing)",
    )
    many = {"action": "append", "default": []}
    replaying.add_argument("--event", metavar="EVT", help="only this one", **many)
    replaying.add_argument("--type", metavar="TYPE", help="only this type", **many)
    replaying.add_argument("--customer", metavar="CUS", help="only this customer's", **many)
    replaying.add_argument("--tenant", metavar="TENANT", help="only this tenant's", **many)
    replaying.add_argument(
        "--since", type=moment_argument, metavar="TIME", help="stored, set aside or made from this time on"
    )
    replaying.add_argument("--until", type=moment_argument, metavar="TIME", help="up to this time")
    replaying.add_argument("--limit", type=int, default=None)
    replaying.add_argument("--force", action="store_true", help="also events that were applied before")
    replaying.add_argument("--dry-run", action="store_true", help="only say what would be handled")
    replaying.add_argument("--yes", action="store_true", help=f"do not ask above {ASK_ABOVE} events")
    replaying.set_defaults(command=_replay)

    reconcile = commands.add_parser("reconcile", help="compare with Stripe now")
    reconcile.add_argument("--since", type=moment_argument, metavar="TIME", help="events from this time on")
    reconcile.add_argument("--subscriptions", action="store_true", help="every subscription too")
    reconcile.add_argument("--money", action="store_true", help="entries of a day, against lists and balance")
    reconcile.add_argument("--day", type=day_argument, metavar="DAY", help="which, in UTC; else yesterday")
    reconcile.add_argument("--dry-run", action="store_true", help="of money, repair nothing")
    reconcile.set_defaults(command=_reconcile)


async def _replay(arguments: argparse.Namespace, tools: Tools) -> int:
    wanted = Wanted(
        ids=frozenset(arguments.event),
        types=frozenset(arguments.type),
        customers=frozenset(arguments.customer),
        tenants=frozenset(arguments.tenant),
        since=arguments.since,
        until=arguments.until,
    )
    choice = Choice(wanted, Owners(tools.pool))
    if arguments.source == "stripe":
        ended = await _from_stripe(arguments, tools, choice)
    elif arguments.source == "dead":

        async def handle_letter(chosen: Chosen) -> Committed:
            assert chosen.letter is not None  # noqa: S101 every one of this source has one
            return await replay_letter(tools.processor, tools.letters, chosen.letter)

        ended = await _again(arguments, choice.of(open_letters(tools.letters, wanted)), handle_letter)
    else:
        connection, _ = await tools.connected()

        async def handle(chosen: Chosen) -> Committed:
            return await tools.processor.process(chosen.origin, again=arguments.force)

        ended = await _again(arguments, choice.of(stored_events(connection, wanted)), handle)
    if choice.unknown:
        print(f"  {choice.unknown:>8} left out: nobody knows whose they are")
    return ended


async def _again(
    arguments: argparse.Namespace,
    chosen: AsyncIterator[Chosen],
    handle: Callable[[Chosen], Awaitable[Committed]],
) -> int:
    """Say what is chosen, or handle it; more than a thousand only where the operator insists."""
    if arguments.dry_run:
        count = 0
        async for one in _bounded(chosen, arguments.limit):
            print(f"  {shown.line(one.label)}")
            count += 1
        print(f"{count} events")
        return 0
    if arguments.yes:
        outcomes = await replay(_bounded(chosen, arguments.limit), handle)
    else:
        kept = [one async for one in _bounded(chosen, min(arguments.limit or ASK_ABOVE + 1, ASK_ABOVE + 1))]
        if len(kept) > ASK_ABOVE:
            raise PermanentError(
                f"more than {ASK_ABOVE} events are many", hint="look with --dry-run, then add --yes"
            )
        outcomes = await replay(_each(kept), handle)
    print(f"{sum(outcomes.values()) - outcomes['new facts']} events")
    for outcome, number in sorted(outcomes.items()):
        print(f"  {number:>8} {outcome}")
    return 0


async def _each(kept: list[Chosen]) -> AsyncIterator[Chosen]:
    for one in kept:
        yield one


async def _bounded(chosen: AsyncIterator[Chosen], limit: int | None) -> AsyncIterator[Chosen]:
    async with aclosing(chosen) as left:  # type: ignore[type-var]  # a generator, as all of ours are
        count = 0
        async for one in left:
            yield one
            count += 1
            if limit is not None and count >= limit:
                return


async def _from_stripe(arguments: argparse.Namespace, tools: Tools, choice: Choice) -> int:
    """Offer what Stripe lists to EVENTS, as the door would; the running worker handles what was missing."""
    if arguments.force:
        raise PermanentError(
            "--force handles again what is stored", hint="use it with --source stream, after this"
        )
    _, bus = await tools.connected()
    poll = _poll(tools, bus)
    chosen = stored = 0
    async for event, raw in poll.listed(_second(arguments.since)):
        wanted = choice.wanted
        if not wanted.fits(event.id, event.type, event.created_at) or not await choice.takes(raw):
            continue
        chosen += 1
        if arguments.dry_run:
            print(f"  {event.created_at:%Y-%m-%d %H:%M:%S}  {shown.line(event.type)}  {shown.line(event.id)}")
        else:
            stored += await poll.offer(event, raw)
        if arguments.limit is not None and chosen >= arguments.limit:
            break
    print(f"{chosen} events at Stripe" + ("" if arguments.dry_run else f", {stored} were missing"))
    return 1 if tools.left_accounts() else 0


async def _reconcile(arguments: argparse.Namespace, tools: Tools) -> int:
    if arguments.money:
        return await reconcile_money(arguments, tools)
    _, bus = await tools.connected()
    poll = _poll(tools, bus)
    recovered = await poll.run(_second(arguments.since))
    print(f"{recovered} events were missing and are stored now")
    left = 0
    if arguments.subscriptions:
        survey = make_survey(tools, bus)
        found = await survey.run()
        print(f"{found.healed} subscriptions were otherwise and are mended")
        for name, why in (found.unmapped | found.unreadable).items():
            print(f"  {shown.line(name)}  left: {shown.line(why)}")
        left = len(found.unmapped | found.unreadable)
    return 1 if left + tools.left_accounts() else 0


def make_survey(tools: Tools, bus: Bus) -> Survey:
    """A survey of every subscription, for a command.

    Raises:
        ConfigurationError: No key is configured.
    """
    return Survey(
        tools.asked_stripe(),
        Store(tools.pool, tools.crash_points, tools.knows),
        Subscriptions(tools.pool),
        _poll(tools, bus),
        tools.metrics,
        tools.tenants,
        is_caught_up=bus.is_caught_up,
        accounts=tuple(tools.settings.accounts),
    )


def _poll(tools: Tools, bus: Bus) -> Poll:
    return Poll(
        tools.asked_stripe(),
        bus,
        Cursors(tools.pool),
        first_days=tools.settings.poll_first_days,
        metrics=tools.metrics,
        clock=SystemClock(),
        accounts=tuple(tools.settings.accounts),
    )


def _second(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp())
