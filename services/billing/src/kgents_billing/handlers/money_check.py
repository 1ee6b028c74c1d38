"""Entries compared with Stripe's own lists and its balance, for one day: each difference by name, repaired
where an object tells what is missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from kgents_billing.handlers.objects import LISTED, Json, Processes, tell_object
from kgents_billing.model import event as events
from kgents_billing.model.decision import decide
from kgents_billing.model.entries import Entry, EntryKind, is_one_off
from kgents_billing.model.event import reference
from kgents_billing.model.known import Known, Options
from kgents_billing.sinks.store.entries import Entries
from kgents_billing.sinks.stripe_api import AccountRefusedError, StripeApi
from kgents_common.crash import NEVER, CrashPoints
from kgents_common.errors import PermanentError

DAY_SECONDS = 86_400
# Of Stripe's balance, what payments, refunds and disputes move; fees, payouts and transfers are no entries.
_MOVEMENTS = ("charge", "payment", "refund", "payment_refund", "refund_failure", "payment_failure_refund")


_PATHS = {
    "re": "/v1/refunds/",
    "pyr": "/v1/refunds/",
    "dp": "/v1/disputes/",
    "du": "/v1/disputes/",
}


@dataclass(slots=True)
class MoneyReport:
    """What a day's comparison came to.

    Attributes:
        compared: Objects by kind.
        differences: One line each; `repaired` those that agree by now.
        balance: By currency, what Stripe's balance gained by payments, refunds and disputes of the day.
        entries: By currency, what entries say of the same movements.
        unknown: Movements of the balance that no entry stands for.
        refused: Connected accounts that may not be asked: of them nothing is said.
    """

    compared: Counter[str] = field(default_factory=Counter)
    differences: list[str] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)
    balance: Counter[str] = field(default_factory=Counter)
    entries: Counter[str] = field(default_factory=Counter)
    unknown: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    @property
    def agrees(self) -> bool:
        """Whether nothing is left to explain."""
        left = (*self.differences, *self.unknown, *self.refused)
        return not left and self.balance == self.entries


class MoneyCheck:
    """Compares a day.

    Args:
        options: As decisions are made with; objects of the other mode are left.
    """

    def __init__(
        self,
        stripe: StripeApi,
        entries: Entries,
        processor: Processes,
        options: Options,
        *,
        crash_points: CrashPoints = NEVER,
    ) -> None:
        self._crash_points = crash_points
        self._stripe = stripe
        self._entries = entries
        self._processor = processor
        self._options = options

    async def run(self, since: int, *, repairs: bool) -> MoneyReport:
        """Compare the day that begins at a second.

        Raises:
            TransientError: Stripe or Postgres does not answer; what was repaired stays.
        """
        report = MoneyReport()
        day = {"created": {"gte": since, "lt": since + DAY_SECONDS}}
        for account in (None, *self._options.accounts):
            try:
                await self._account(account, day, report, repairs=repairs)
            except AccountRefusedError as error:
                report.refused.append(str(error))
        return report

    async def _account(
        self, account: str | None, day: Mapping[str, Any], report: MoneyReport, *, repairs: bool
    ) -> None:
        stripe = self._stripe.of(account)
        for listed in LISTED:
            async for page in stripe.pages(listed.path, {**listed.params, **day}):
                for raw in page.items:
                    thing = msgspec.json.decode(raw)
                    kind, _ = listed.told_as(thing)
                    if kind is not None:
                        report.compared[listed.name] += 1
                        await self._compare(kind, thing, account, report, repairs=repairs)
        async for page in stripe.pages("/v1/balance_transactions", day):
            for raw in page.items:
                await self._movement(stripe, msgspec.json.decode(raw), report)

    async def _compare(
        self, kind: str, thing: Json, account: str | None, report: MoneyReport, *, repairs: bool
    ) -> None:
        livemode = self._options.livemode is True
        wanted = self._wanted(kind, thing, account)
        missing = [line for entry in wanted for line in await self._differs(entry)]
        if missing and repairs:
            self._crash_points.reach("money.before_repair")
            try:
                await tell_object(self._processor, kind, thing, account, livemode=livemode)
            except PermanentError as error:
                missing.append(f"{thing['id']}: not repaired: {error}")
            self._crash_points.reach("money.after_repair")
            left = [line for entry in wanted for line in await self._differs(entry)]
            report.repaired += [line for line in missing if line not in left and "not repaired" not in line]
            missing = [line for line in missing if line in left or "not repaired" in line]
        report.differences += missing

    def _wanted(self, kind: str, thing: Json, account: str | None) -> list[Entry]:
        """The entries an object as it is now stands for."""
        event = events.StripeEvent(
            "listed",
            kind,
            int(thing.get("created") or 0),
            self._options.livemode is True,
            account,
            None,
            thing,
        )
        return list(
            decide(event, Known(payment_tenant="nobody", customer_tenant="nobody"), self._options).entries
        )

    async def _differs(self, wanted: Entry) -> list[str]:
        known = await self._entries.get(wanted.kind, wanted.id)
        name = f"{wanted.kind.value} {wanted.id}"
        if known is None and is_one_off(wanted) and await self._entries.paid_by([wanted.id]) is not None:
            return []  # the first version told its checkout
        if known is None:
            return [f"{name}: no entry; Stripe says {wanted.state} {_money(wanted)}"]
        found = []
        for state, mark in wanted.seen.items():
            if state not in known.seen:
                found.append(f"{name}: entry is {known.state}; Stripe says {state} {_money(wanted)}")
            elif known.seen[state].amount != mark.amount:
                found.append(f"{name}: {state} {known.seen[state].amount}; Stripe says {mark.amount}")
        return found

    async def _in_its_currency(
        self, stripe: StripeApi, source: str, moved: Mapping[str, Any]
    ) -> tuple[int, str]:
        """A movement in the currency that was paid in, as entries are, where the balance has another."""
        amount, currency = int(moved["amount"]), str(moved["currency"])
        if moved.get("exchange_rate") is None:
            return amount, currency
        thing = (await stripe.get(_PATHS.get(source.partition("_")[0], "/v1/charges/") + source)).data
        whole = int(thing["amount"])
        return -whole if amount < 0 else whole, str(thing["currency"])

    async def _movement(self, stripe: StripeApi, moved: dict[str, Any], report: MoneyReport) -> None:
        """One movement of the balance, and what its entry says."""
        source = reference(moved.get("source"))
        is_dispute = moved.get("type") == "adjustment" and (source or "").startswith(("dp_", "du_"))
        if source is None or not (moved.get("type") in _MOVEMENTS or is_dispute):
            return
        amount, currency = await self._in_its_currency(stripe, source, moved)
        report.balance[currency] += amount
        if is_dispute:
            rounds = await self._entries.like(EntryKind.DISPUTE, f"{source}/")
            marks = [mark.amount for entry in rounds for mark in entry.seen.values()]
            stands = amount if amount in marks else None
        elif source.startswith(("re_", "pyr_")):
            refund = await self._entries.get(EntryKind.REFUND, source)
            stands = None if refund is None else -abs(amount) if amount < 0 else amount
            if refund is not None and abs(next(iter(refund.seen.values())).amount) != abs(amount):
                stands = next(iter(refund.seen.values())).amount
        else:
            charge = (await stripe.get(f"/v1/charges/{source}")).data
            names = [name for name in (source, reference(charge.get("payment_intent"))) if name]
            stands = await self._entries.paid_by(names)
        if stands is None:
            report.unknown.append(f"{source}: {amount} {currency} ({moved.get('type')}) is in no entry")
        else:
            report.entries[currency] += stands


def _money(entry: Entry) -> str:
    mark = entry.seen[entry.state]
    return f"{mark.amount} {entry.currency}"
