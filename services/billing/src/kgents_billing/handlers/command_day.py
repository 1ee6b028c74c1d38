"""`reconcile --money`: a day's money, held against Stripe."""

from __future__ import annotations

import argparse
from datetime import UTC, date, datetime, timedelta

from kgents_billing.handlers.command_tools import Tools
from kgents_billing.handlers.money_check import MoneyCheck
from kgents_billing.sinks.store.entries import Entries


async def reconcile_money(arguments: argparse.Namespace, tools: Tools) -> int:
    """`reconcile --money --day`: 0 where entries, objects and the balance agree."""
    day = arguments.day or datetime.now(UTC).date() - timedelta(days=1)
    since = int(datetime.combine(day, datetime.min.time(), UTC).timestamp())
    check = MoneyCheck(
        tools.asked_stripe(),
        Entries(tools.pool),
        tools.processor,
        tools.settings.options(),
        crash_points=tools.crash_points,
    )
    report = await check.run(since, repairs=not arguments.dry_run)
    compared = ", ".join(f"{number} {kind}" for kind, number in sorted(report.compared.items()))
    print(f"{day}: {compared or 'nothing'} compared")
    for line in report.repaired:
        print(f"  repaired  {line}")
    for line in (*report.differences, *report.unknown):
        print(f"  differs   {line}")
    for line in report.refused:
        print(f"  left      {line}")
    for currency in sorted(report.balance | report.entries):
        held, known = report.balance[currency], report.entries[currency]
        print(f"  {currency}  Stripe's balance {held:+}  entries {known:+}  difference {held - known:+}")
    return 0 if report.agrees else 1


def day_argument(text: str) -> date:
    """An argument that is a day, in UTC.

    Raises:
        argparse.ArgumentTypeError: It is none.
    """
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is no day: write 2026-11-25") from None
