"""The operator's commands about ownership: names nobody opened, whose a thing is and was, and giving it to
another."""

from __future__ import annotations

import argparse
import re
import time
from datetime import UTC, datetime
from typing import Any

from kgents_billing.handlers.command_tools import Tools, moment_argument
from kgents_billing.model.ownership import Kind, Period, history
from kgents_billing.sinks.store.assign import Assignments
from kgents_common import subjects
from kgents_common.errors import PermanentError

KINDS = tuple(kind.value for kind in Kind)


def add_to(commands: Any) -> None:
    """Add `tenants`, `owner` and `assign` to a parser's commands."""
    tenants = commands.add_parser("tenants", help="names in Stripe's metadata that nobody opened")
    what = tenants.add_subparsers(required=True, metavar="what")
    unknown = what.add_parser("unknown", help="one line each, with how many events wait")
    unknown.set_defaults(command=_unknown)
    opening = what.add_parser("open", help="it is a tenant: what waits for it is handled")
    opening.add_argument("tenant")
    opening.set_defaults(command=_open)

    owner = commands.add_parser("owner", help="whose a subscription or a customer is and was")
    owner.add_argument("kind", choices=KINDS)
    owner.add_argument("id")
    owner.set_defaults(command=_owner)

    assign = commands.add_parser("assign", help="a subscription or a customer is a tenant's from now on")
    assign.add_argument("kind", choices=KINDS)
    assign.add_argument("id", type=_stripe_id)
    given = assign.add_mutually_exclusive_group(required=True)
    given.add_argument("tenant", nargs="?")
    given.add_argument("--release", action="store_true", help="it is whose Stripe says, again")
    assign.add_argument("--since", type=moment_argument, metavar="TIME", help="from this time on; else now")
    assign.set_defaults(command=_assign)


def _stripe_id(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_]{1,255}", text):
        raise argparse.ArgumentTypeError("no id of Stripe's: letters, digits and _")
    return text


async def _unknown(_: argparse.Namespace, tools: Tools) -> int:
    found = await tools.tenants.unknown()
    for one in found:
        print(
            f"{one.named:32}  {one.events:>6} events  since {one.since:%Y-%m-%d %H:%M:%S}  e.g. {one.example}"
        )
    print("none" if not found else "open one: kgents-billing tenants open <name>")
    return 0


async def _open(arguments: argparse.Namespace, tools: Tools) -> int:
    _check(arguments.tenant)
    freed = await tools.tenants.open(arguments.tenant)
    print(f"{arguments.tenant} is open; {freed} events that waited are tried again now")
    return 0


async def _owner(arguments: argparse.Namespace, tools: Tools) -> int:
    words = await Assignments(tools.pool).words(Kind(arguments.kind), arguments.id)
    for period in history(words, int(time.time())):
        print(shown_period(period))
    if not words:
        print("nobody ever said")
    return 0


async def _assign(arguments: argparse.Namespace, tools: Tools) -> int:
    tenant = "" if arguments.release else arguments.tenant
    if tenant:
        _check(tenant)
        if not await tools.tenants.is_open(tenant):
            raise PermanentError(
                f"{tenant} is no tenant", hint=f"make a key for it, or: kgents-billing tenants open {tenant}"
            )
    since = arguments.since or datetime.now(UTC)
    done = await Assignments(tools.pool, crash_points=tools.crash_points).assign(
        Kind(arguments.kind), arguments.id, tenant, int(since.timestamp())
    )
    print(f"{arguments.kind} {arguments.id}: {'as Stripe says' if arguments.release else tenant}")
    print(
        f"{done.subscriptions} subscriptions changed hands, {done.facts} new facts,"
        f" {done.freed} events wait no longer"
    )
    return 0


def shown_period(period: Period) -> str:
    """One line of a history."""
    return f"{period.tenant:32}  {_day(period.since) or 'always':20}  to {_day(period.until) or 'now'}"


def _day(second: int | None) -> str | None:
    return None if second is None else f"{datetime.fromtimestamp(second, UTC):%Y-%m-%d %H:%M:%S}"


def _check(tenant: str) -> None:
    if not subjects.is_tenant(tenant):
        raise PermanentError(f"a tenant is {subjects.TENANT_RULE}")
