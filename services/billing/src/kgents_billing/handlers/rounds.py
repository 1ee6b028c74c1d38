"""Slow work: subscriptions only Stripe can tell, what waits for its tenant, what is dead."""

from __future__ import annotations

from datetime import timedelta

import msgspec
import structlog
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from kgents_billing.handlers.defects import code_of, detail_of, waited
from kgents_billing.handlers.process import Processor
from kgents_billing.handlers.survey import SOURCE
from kgents_billing.model.decision import Outcome
from kgents_billing.model.facts import stamped
from kgents_billing.model.subscription import Ownership, observe_object
from kgents_billing.sinks.store import Committed, Letters, OvertakenError, Store, Subscriptions, origin_of
from kgents_billing.sinks.store.letters import PATIENCE, Waiting
from kgents_billing.sinks.store.subscriptions import Stored
from kgents_billing.sinks.stripe_api import AccountRefusedError, MissingObjectError, StripeApi
from kgents_common.clock import Clock
from kgents_common.errors import PermanentError, TransientError

REFETCH_BATCH = 20
QUARANTINE_BATCH = 50
NOT_FOUND_WAIT = timedelta(hours=1)
# A payment that nobody tells of by then is one of an endpoint that does not send it: its customer says whose
# what goes back is.
PAYMENT_PATIENCE = timedelta(minutes=10)

Pool = AsyncConnectionPool[AsyncConnection]
_log = structlog.get_logger()


class Refetch:
    """Subscriptions whose events do not tell their last state: asked for, a few at a time."""

    def __init__(self, stripe: StripeApi, store: Store, subscriptions: Subscriptions) -> None:
        self._stripe = stripe
        self._store = store
        self._subscriptions = subscriptions

    async def run(self) -> bool:
        """One batch; whether there may be more. One that fails goes to the end: it holds up no other.

        Raises:
            TransientError: Stripe or Postgres does not answer.
        """
        found = await self._subscriptions.to_refetch(REFETCH_BATCH)
        failed = 0
        for stored in found:
            try:
                await self._one(stored)
            except TransientError:
                await self._store.put_off(stored.row.id)
                raise
            except PermanentError as error:
                failed += 1
                _log.error("refetch.failed", subscription=stored.row.id, error=str(error))
                await self._store.put_off(stored.row.id)
        return len(found) == REFETCH_BATCH and not failed

    async def _one(self, stored: Stored) -> None:
        row = stored.row
        try:
            seen = await self._stripe.of(stored.account).subscription(row.id)
        except (MissingObjectError, AccountRefusedError) as error:
            # Another account's, another key's, or gone: what is known of it stays unsure.
            _log.error("refetch.not_found", subscription=row.id, account=stored.account, error=str(error))
            await self._store.not_found(row.id, NOT_FOUND_WAIT)
            return
        state = await self._store.only_open(seen.state)
        owned = await self._store.ownership(row.id, row, state) or Ownership(row.tenant, row.tenant)
        made = observe_object(
            row, row.id, owned, state, second=seen.second, source=SOURCE, tells_change=False
        )
        try:
            new = msgspec.structs.replace(made.row, needs_refetch=False)
            facts = stamped(made.facts, stored.livemode, stored.account)
            await self._store.observe(new, facts, livemode=stored.livemode, account=stored.account)
        except OvertakenError:
            return  # an event came meanwhile; if it did not tell, the next round asks again


class Quarantine:
    """Events without a tenant, tried again until one is known or a day has passed."""

    def __init__(self, letters: Letters, processor: Processor, clock: Clock) -> None:
        self._letters = letters
        self._processor = processor
        self._clock = clock

    async def run(self) -> bool:
        """One batch; whether there may be more. One that fails holds up no other.

        Raises:
            TransientError: Postgres does not answer.
        """
        found = await self._letters.due(QUARANTINE_BATCH)
        for waiting in found:
            is_late = self._clock.now() - waiting.first_at > PATIENCE
            origin = origin_of(waiting.message())
            try:
                is_patient = self._clock.now() - waiting.first_at < PAYMENT_PATIENCE
                committed = await self._processor.process(origin, is_patient=is_patient)
            except PermanentError as error:
                await self._letters.give_up(waiting, code_of(error), detail_of(error))
            except TransientError as error:
                _log.warning("quarantine.postponed", event_id=waiting.event_id, error=str(error))
            except Exception as error:  # a defect of ours with this one event
                _log.exception("quarantine.failed", event_id=waiting.event_id)
                if is_late:
                    await self._letters.give_up(waiting, code_of(error), detail_of(error))
            else:
                await self._settle(waiting, committed, is_late=is_late)
        return len(found) == QUARANTINE_BATCH

    async def _settle(self, waiting: Waiting, committed: Committed, *, is_late: bool) -> None:
        outcome = committed.outcome
        if outcome is Outcome.DUPLICATE:
            await self._letters.free(waiting.event_id)  # it was handled by another way meanwhile
        elif outcome is Outcome.QUARANTINED and is_late:
            if waiting.type == "customer.deleted":  # nobody ever knew whose: there is nobody to tell
                await self._letters.free(waiting.event_id)
                return
            reason = committed.reason  # of this try: what was missing at first may be there by now
            await self._letters.give_up(waiting, reason, waited(reason, committed.named))
            _log.error("quarantine.given_up", event_id=waiting.event_id, reason=reason)
