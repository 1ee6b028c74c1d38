"""Everything Stripe has since a day, told once: subscriptions, then what moved money; it may be stopped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from kgents_billing.handlers.objects import LISTED, Listed, Processes, tell_object
from kgents_billing.handlers.survey import Survey, Surveyed
from kgents_billing.model.decision import Outcome
from kgents_billing.model.known import Options
from kgents_billing.sinks.store.cursors import Backfills
from kgents_billing.sinks.stripe_api import AccountRefusedError, StripeApi
from kgents_common.crash import NEVER, CrashPoints
from kgents_common.errors import PermanentError


@dataclass(slots=True)
class Backfilled:
    """What a backfill came to.

    Attributes:
        seen: Objects by kind, of this run.
        facts: New facts of this run.
        skipped: What was left, by name and why.
    """

    seen: Counter[str] = field(default_factory=Counter)
    facts: int = 0
    skipped: list[str] = field(default_factory=list)
    subscriptions: Surveyed | None = None


class Backfill:
    """Takes Stripe's lists from the newest back to a day; each page is noted once it is done.

    Args:
        say: Told of progress, a line at a time.
    """

    def __init__(
        self,
        stripe: StripeApi,
        survey: Survey,
        processor: Processes,
        progress: Backfills,
        options: Options,
        *,
        say: Callable[[str], None] = lambda _: None,
        crash_points: CrashPoints = NEVER,
    ) -> None:
        self._crash_points = crash_points
        self._stripe = stripe
        self._survey = survey
        self._processor = processor
        self._progress = progress
        self._options = options
        self._say = say

    async def run(self, since: int) -> Backfilled:
        """Go on where the last run for this day came to; all of it where it was done.

        Raises:
            TransientError: Stripe or Postgres does not answer; run it again.
        """
        found = Backfilled()
        found.subscriptions = await self._survey.run()
        self._say(f"subscriptions: {found.subscriptions.healed} new or otherwise")
        self._crash_points.reach("backfill.after_survey")
        for account in (None, *self._options.accounts):
            try:
                for listed in LISTED:
                    await self._list(listed, account, since, found)
            except AccountRefusedError as error:  # the next run goes on with it, where it may
                found.skipped.append(str(error))
        return found

    async def _list(self, listed: Listed, account: str | None, since: int, found: Backfilled) -> None:
        name = listed.name if account is None else f"{listed.name}@{account}"
        after, is_done = await self._progress.of(name, since)
        if is_done:
            self._say(f"{name}: done before")
            return
        params = {**listed.params, "created": {"gte": since}}
        if after is not None:
            params["starting_after"] = after
        async for page in self._stripe.of(account).pages(listed.path, params):
            told = skipped = 0
            for raw in page.items:
                thing = msgspec.json.decode(raw)
                found.seen[listed.name] += 1
                why, facts = await self._one(listed, thing, account)
                told += facts
                if why:
                    skipped += 1
                    found.skipped.append(f"{listed.name} {thing['id']}: {why}")
                after = thing["id"]
                self._crash_points.reach("backfill.after_object")
            found.facts += told
            if page.items:
                await self._progress.note(name, after, seen=len(page.items), told=told, skipped=skipped)
                self._crash_points.reach("backfill.after_page")
            self._say(f"{name}: {found.seen[listed.name]} seen, {told} new facts, {skipped} left")
        self._crash_points.reach("backfill.before_done")
        await self._progress.done(name)
        self._crash_points.reach("backfill.after_done")

    async def _one(self, listed: Listed, thing: dict[str, object], account: str | None) -> tuple[str, int]:
        """Why an object was left (nothing where it was not), and how many facts it told."""
        kind, why = listed.told_as(thing)
        if kind is None:
            return why, 0
        livemode = self._options.livemode is True
        if isinstance(thing.get("livemode"), bool) and thing["livemode"] is not livemode:
            return "it is of the other mode", 0
        try:
            committed = await tell_object(self._processor, kind, thing, account, livemode=livemode)
        except PermanentError as error:
            return str(error), 0
        if committed.outcome is Outcome.QUARANTINED:
            return "nobody knows whose it is: kgents-billing quarantine", 0
        return "", committed.facts
