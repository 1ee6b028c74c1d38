"""The operator's commands about what is known: one thing shown whole, and a first look at Stripe."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from kgents_billing.handlers.backfill import Backfill
from kgents_billing.handlers.command_owners import shown_period
from kgents_billing.handlers.command_replay import make_survey
from kgents_billing.handlers.command_tools import Tools, moment_argument
from kgents_billing.model.access import Access
from kgents_billing.model.entitlement import entitlements, reading_of
from kgents_billing.model.entries import Entry, sums
from kgents_billing.model.ownership import Kind, history
from kgents_billing.sinks.store import Subscriptions
from kgents_billing.sinks.store.assign import Assignments
from kgents_billing.sinks.store.cursors import Backfills
from kgents_billing.sinks.store.entries import Entries
from kgents_billing.sinks.store.heard import Heard, HeardEvent
from kgents_billing.sinks.store.subscriptions import Stored
from kgents_billing.sinks.store.told import ToldFact, ToldFacts
from kgents_common import shown

KINDS = ("subscription", "customer", "invoice", "payment", "tenant")
SHOWN_ENTRIES = 200


def add_to(commands: Any) -> None:
    """Add `show` and `backfill` to a parser's commands."""
    show = commands.add_parser("show", help="state, owners, entries, facts, and why this access")
    show.add_argument(
        "kind", choices=KINDS, help="a payment is known by its intent, charge, refund or checkout"
    )
    show.add_argument("id")
    show.set_defaults(command=_show)

    backfill = commands.add_parser("backfill", help="everything Stripe has since a day; may be interrupted")
    backfill.add_argument("--since", type=moment_argument, required=True, metavar="TIME")
    backfill.set_defaults(command=_backfill)


async def _show(arguments: argparse.Namespace, tools: Tools) -> int:
    name, kind = arguments.id, arguments.kind
    subscriptions, entries, told = Subscriptions(tools.pool), Entries(tools.pool), ToldFacts(tools.pool)
    found = False
    heard: Sequence[HeardEvent] = ()
    if kind == "tenant":
        rows = await subscriptions.of_tenant(name)
        _print_access(name, rows, tools)
        moved, facts = await entries.of_tenant(name, SHOWN_ENTRIES), await told.of_tenant(name, SHOWN_ENTRIES)
    elif kind in ("subscription", "customer"):
        words = await Assignments(tools.pool).words(Kind(kind), name)
        found = bool(words)
        print("owners")
        for period in history(words, int(datetime.now(UTC).timestamp())):
            print(f"  {shown_period(period)}")
        one = await subscriptions.get(name) if kind == "subscription" else None
        rows = [one] if one else await subscriptions.of_customer(name) if kind == "customer" else []
        moved, facts = [], await told.about(name)
        heard = await Heard(tools.pool).of(name)
    else:
        rows, moved, facts = [], await entries.of_payment(name), await told.about(name)
        heard = await Heard(tools.pool).of(name)
    for stored in rows:
        _print_subscription(stored, tools)
    _print_entries(moved)
    _print_facts(facts)
    _print_heard(heard)
    if kind == "tenant" and SHOWN_ENTRIES in (len(moved), len(facts)):
        print(f"of entries and facts the latest {SHOWN_ENTRIES}; of one thing, all are shown")
    if not (found or rows or moved or facts or heard):
        print(f"nothing is known of {kind} {name}")
        return 1
    return 0


async def _backfill(arguments: argparse.Namespace, tools: Tools) -> int:
    _, bus = await tools.connected()
    backfill = Backfill(
        tools.asked_stripe(),
        make_survey(tools, bus),
        tools.processor,
        Backfills(tools.pool),
        tools.settings.options(),
        say=print,
        crash_points=tools.crash_points,
    )
    done = await backfill.run(int(arguments.since.timestamp()))
    assert done.subscriptions is not None  # noqa: S101 the run made it
    left = [f"subscription {name}: {why}" for name, why in
            (done.subscriptions.unmapped | done.subscriptions.unreadable).items()]  # fmt: skip
    for line in (*left, *done.skipped):
        print(f"  left  {line}")
    print(f"{sum(done.seen.values())} objects, {done.facts} new facts, {len(left) + len(done.skipped)} left")
    return 0


def _print_access(tenant: str, rows: Sequence[Stored], tools: Tools) -> None:
    livemode = tools.settings.stripe_mode == "live"
    ours = [stored.row for stored in rows if stored.livemode is livemode]
    answer = entitlements(tenant, ours, _grace(tools), datetime.now(UTC))
    print(f"access {answer.access.value}: {answer.why} ({answer.subscription or 'no subscription'})")
    if answer.access is not Access.NONE:
        print(
            f"  until {answer.until or 'nothing foreseen'},"
            f" {'settled' if answer.is_settled else 'not settled'}"
        )


def _print_subscription(stored: Stored, tools: Tools) -> None:
    row, state = stored.row, stored.row.state
    reading = reading_of(row, _grace(tools), datetime.now(UTC))
    mode = "live" if stored.livemode else "test"
    print(
        f"subscription {row.id}  {state.status}  of {row.tenant}  {mode}  {stored.account or 'own account'}"
    )
    print(f"  access {reading.access.value}: {reading.why}, until {reading.until or 'nothing foreseen'}")
    for item in state.items:
        print(f"  {item.quantity or 1} x {item.price} ({item.product or '-'})")
    print(f"  period {_at(state.period_start)} to {_at(state.period_end)}, customer {state.customer or '-'}")
    unsure = (
        "not found at Stripe"
        if stored.not_found
        else "to be asked at Stripe"
        if row.needs_refetch
        else "sure"
    )
    print(f"  version {row.version} by {row.observed_via}, last event {row.last_event or '-'}: {unsure}")
    for edge in sorted(row.window.edges, key=lambda edge: edge.second):
        print(f"    {_at(edge.second)}  {edge.event}  {edge.before[:8] or 'born':8} -> {edge.after[:8]}")


def _print_entries(moved: Sequence[Entry]) -> None:
    if not moved:
        return
    print("entries")
    for entry in moved:
        states = ", ".join(
            f"{state} {mark.amount:+} at {_at(mark.second)}"
            for state, mark in sorted(entry.seen.items(), key=lambda pair: pair[1].second)
        )
        mode = {True: "live", False: "test", None: "-"}[entry.livemode]
        print(f"  {entry.kind.value:16} {entry.id:30} {entry.currency} {mode}  {states}")
    for total in sums(moved):
        print(f"  Stripe's balance holds {total.balance:+} {total.currency} of it, outside {total.outside:+}")


def _print_facts(facts: Sequence[ToldFact]) -> None:
    if facts:
        print("facts")
    for fact in facts:
        print(f"  {fact.time}  {fact.tenant:16} {fact.type:28} {fact.key}  {fact.moves or ''}")


def _print_heard(heard: Sequence[HeardEvent]) -> None:
    if heard:
        print("events")
    for event in heard:
        made = (
            f"made {_at(event.second)}" if event.second is not None else f"heard {event.at:%Y-%m-%d %H:%M:%S}"
        )
        print(f"  {made}  {shown.line(event.type):44} {shown.line(event.event_id)}  {event.outcome}")


def _grace(tools: Tools) -> timedelta | None:
    days = tools.settings.grace_days
    return None if days is None else timedelta(days=days)


def _at(second: int | None) -> str:
    return "-" if second is None else f"{datetime.fromtimestamp(second, UTC):%Y-%m-%d %H:%M:%S}"
