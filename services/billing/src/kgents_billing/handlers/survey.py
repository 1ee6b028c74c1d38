"""Every subscription at Stripe compared with its row: states that no event ever told."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import structlog

from kgents_billing.handlers.poll import Poll
from kgents_billing.metrics import Metrics
from kgents_billing.model.event import at
from kgents_billing.model.facts import stamped
from kgents_billing.model.projection import UnreadableObjectError, digest, is_same, project
from kgents_billing.model.subscription import observe_object
from kgents_billing.model.tenant import KEY
from kgents_billing.sinks.store import Store, Subscriptions
from kgents_billing.sinks.store.tenants import Tenants
from kgents_billing.sinks.stripe_api import AccountRefusedError, StripeApi
from kgents_common import subjects
from kgents_common.errors import KgentsError, PermanentError, TransientError

SOURCE = "/stripe/self"

_log = structlog.get_logger()


@dataclass(slots=True)
class Surveyed:
    """What a survey came to.

    Attributes:
        healed: Rows that were otherwise, or missing, and are as Stripe says now.
        unmapped: Subscriptions nobody knows the tenant of, and why.
        unreadable: Subscriptions that could not be looked at, and why.
    """

    healed: int = 0
    unmapped: dict[str, str] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)


class Survey:
    """Every subscription at Stripe, compared with its row: heals what no event ever told.

    A difference is believed only where the object stood still, another look at the events found none, and
    every stored event is handled: else the event that tells it is on its way, and would tell it again.
    """

    def __init__(
        self,
        stripe: StripeApi,
        store: Store,
        subscriptions: Subscriptions,
        poll: Poll,
        metrics: Metrics,
        tenants: Tenants,
        *,
        is_caught_up: Callable[[], Awaitable[bool]],
        accounts: tuple[str, ...] = (),
    ) -> None:
        self._accounts = accounts
        self._stripe = stripe
        self._store = store
        self._subscriptions = subscriptions
        self._poll = poll
        self._metrics = metrics
        self._tenants = tenants
        self._is_caught_up = is_caught_up

    async def run(self) -> Surveyed:
        """Look once; what was healed, and what belongs to nobody.

        An account that does not answer, or may not be asked, holds up no other.

        Raises:
            TransientError: Stripe or Postgres does not answer; what was healed stays.
        """
        suspects: dict[str, tuple[str, str | None]] = {}
        failed: dict[str | None, KgentsError] = {}
        for account in (None, *self._accounts):
            try:
                suspects |= await self._suspects(account)
            except AccountRefusedError:
                continue
            except KgentsError as error:
                failed[account] = error
                _log.warning("survey.failed", account=account, error=str(error))
        found = Surveyed()
        if suspects:
            looked = await self._poll.look()
            failed |= looked.failed
            if looked.recovered or not await self._is_caught_up():
                raise TransientError("survey: events wait; look again once they are handled")
            for name, (first_look, account) in suspects.items():
                # Where the events are not known up to now, one of them may tell it yet.
                if account not in failed:
                    await self._healed(name, first_look, account, found)
        for failure in failed.values():
            raise failure
        return found

    async def _suspects(self, account: str | None) -> dict[str, tuple[str, str | None]]:
        """By id, the subscriptions of an account that differ: what they are at this look, and whose."""
        found: dict[str, tuple[str, str | None]] = {}
        async for page in self._stripe.of(account).pages("/v1/subscriptions", {"status": "all"}):
            for raw in page.items:
                thing = msgspec.json.decode(raw)
                if await self._differs(thing):
                    found[thing["id"]] = (_cut_digest(thing), account)
        return found

    async def _healed(self, name: str, first_look: str, account: str | None, found: Surveyed) -> None:
        try:
            found.healed += await self._heal(name, first_look, account, found)
        except PermanentError as error:  # gone since, or unreadable: the others all the same
            found.unreadable[name] = str(error)
            _log.error("survey.not_healed", subscription=name, error=str(error))

    async def _differs(self, thing: Mapping[str, Any]) -> bool:
        try:
            state = project(thing)
        except UnreadableObjectError as error:
            _log.error("survey.unreadable", error=str(error))
            return False
        stored = await self._subscriptions.get(str(thing.get("id")))
        if at(thing, "items", "has_more") is True:
            return True  # cut: only the whole object can be compared
        return stored is None or not is_same(stored.row.state, state, tenant=stored.row.tenant)

    async def _heal(self, name: str, first_look: str, account: str | None, found: Surveyed) -> bool:
        stripe = self._stripe.of(account)
        answer = await stripe.whole_subscription(name)
        if first_look not in (_cut_digest(answer.data), "") or not await self._differs(answer.data):
            return False  # it changes right now: its events tell, or the next survey does
        stored = await self._subscriptions.get(name)
        row = stored.row if stored else None
        seen = project(answer.data)
        state = await self._store.only_open(seen)
        owned = await self._store.ownership(name, row, state)
        if owned is None and seen.tenant is None and seen.customer is not None:
            owned = await self._store.ownership(
                name, row, state, await self._customers(stripe, seen.customer)
            )
        if owned is None:
            found.unmapped[name] = f"unknown_tenant {seen.tenant}" if seen.tenant else "unmapped_tenant"
            _log.warning("survey.unmapped", subscription=name, named=seen.tenant)
            return False
        if row is not None and is_same(row.state, state, tenant=row.tenant) and owned.of(state) == row.tenant:
            return False
        made = observe_object(
            row,
            name,
            owned,
            state,
            second=answer.second,
            source=SOURCE,
            via="reconcile",
        )
        self._metrics.drift.inc()
        _log.warning("survey.healed", subscription=name)
        livemode = answer.data.get("livemode") is True
        await self._store.observe(
            made.row, stamped(made.facts, livemode, account), livemode=livemode, account=account
        )
        return True

    async def _customers(self, stripe: StripeApi, customer: str) -> str | None:
        """Whose Stripe's customer object says its customer is, where that is an open tenant."""
        try:
            named = (await stripe.customer_metadata(customer)).get(KEY)
        except PermanentError:
            return None
        is_open = isinstance(named, str) and subjects.is_tenant(named) and await self._tenants.is_open(named)
        return named if is_open else None


def _cut_digest(thing: Mapping[str, Any]) -> str:
    """The state's name; empty for an object whose items were cut, which has none."""
    return "" if at(thing, "items", "has_more") is True else digest(project(thing))
