"""What an event leads to, committed in one transaction.

Keys decide what happens once: the event's id, the subscription's version, the fact's semantic key.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from kgents_billing.model.decision import Decision, Outcome
from kgents_billing.model.event import StripeEvent
from kgents_billing.model.facts import Fact
from kgents_billing.model.subscription import Subscription
from kgents_billing.model.tenant import hints
from kgents_billing.sinks.store.entries import keep_entry, keep_payment
from kgents_billing.sinks.store.owners import follow, learn, say
from kgents_billing.sinks.store.subscriptions import put_subscription
from kgents_billing.sinks.store.surroundings import Surroundings
from kgents_billing.sinks.store.telling import tell
from kgents_common.crash import CrashPoints
from kgents_common.database import transient_errors
from kgents_common.dead_letters import Burial, bury
from kgents_common.stored_message import StoredMessage

RECONCILE_SUBSCRIPTIONS = "subscriptions"

_APPLIED = """
insert into billing.applied (event_id, type, outcome, about, second)
select id, %(type)s, %(outcome)s, %(about)s, %(second)s from unnest(%(ids)s::text[]) as id order by id
on conflict (event_id) do nothing returning event_id
"""
_QUARANTINE = """
insert into billing.quarantine (event_id, type, customer, subscription, named, subject, body, epoch, seq,
    stored_at, reason, waits_for)
values (%(id)s, %(type)s, %(customer)s, %(subscription)s, %(named)s, %(subject)s, %(body)s, %(epoch)s,
    %(seq)s, %(stored_at)s, %(reason)s, %(waits_for)s)
on conflict (event_id) do update set reason = excluded.reason, named = excluded.named
"""


@dataclass(frozen=True, slots=True)
class Origin(StoredMessage):
    """The stored message an event came with."""

    traceparent: str | None = None


def origin_of(message: StoredMessage, *, traceparent: str | None = None) -> Origin:
    """A stored message as an event's origin."""
    fields = {name: getattr(message, name) for name in StoredMessage.__slots__}
    return Origin(**fields, traceparent=traceparent)


@dataclass(frozen=True, slots=True)
class Committed:
    """How an event ended, and how many of its facts are new.

    Attributes:
        reason, named: Why it waits, and for which tenant, where it does.
    """

    outcome: Outcome
    facts: int = 0
    reason: str = ""
    named: str | None = None


class Store(Surroundings):
    """Reads what a decision needs and commits what it says.

    Args:
        knows: Whether a key names this tenant; None where every name is a tenant's.
    """

    def __init__(
        self,
        pool: AsyncConnectionPool[AsyncConnection],
        crash_points: CrashPoints,
        knows: Callable[[str], bool] | None = None,
    ) -> None:
        super().__init__(pool, knows)
        self._crash_points = crash_points

    async def commit(
        self, event: StripeEvent, decision: Decision, origin: Origin, *, detail: str = "", again: bool = False
    ) -> Committed:
        """Commit a decision; when it returns, it is durable.

        Args:
            detail: Of a dead letter, for an operator; nothing of the body.
            again: The event may have been applied before: an operator replays it.

        Raises:
            OvertakenError: Nothing is committed.
            TransientError: Nothing is committed, or (a lost connection) all of it: the event's id tells.
        """
        with transient_errors():
            # Statements whose answer nobody needs yet are sent together: waiting for each was half the work.
            async with self._pool.connection() as connection, connection.pipeline(), connection.transaction():
                if decision.outcome is Outcome.QUARANTINED:
                    await self._quarantine(connection, event, decision, origin)
                    return Committed(Outcome.QUARANTINED, 0, decision.reason, decision.named)
                if not await self._is_first(connection, event, decision) and not again:
                    return Committed(Outcome.DUPLICATE)
                facts = await self._write(connection, event, decision, origin)
                if decision.outcome is Outcome.DEAD:
                    await self._bury(connection, event, decision, origin, detail)
                self._crash_points.reach("apply.before_commit")
        return Committed(decision.outcome, facts)

    async def observe(
        self,
        row: Subscription,
        facts: Sequence[Fact],
        *,
        livemode: bool,
        account: str | None = None,
        traceparent: str | None = None,
    ) -> int:
        """Commit what looking at a subscription itself led to; how many facts are new.

        Raises:
            OvertakenError: Nothing is committed.
            TransientError: Postgres is away.
        """
        with transient_errors():
            async with self._pool.connection() as connection, connection.transaction():
                await put_subscription(connection, row, livemode=livemode, account=account)
                told = await tell(connection, row.tenant, facts, traceparent)
                self._crash_points.reach("observe.before_commit")
        self._crash_points.reach("observe.after_commit")
        return told

    async def not_found(self, subscription_id: str, again_after: timedelta) -> None:
        """Stripe has no such subscription, as far as it lets us see: its state stays unknown.

        Raises:
            TransientError: Postgres is away.
        """
        with transient_errors():
            async with self._pool.connection() as connection:
                await connection.execute(
                    "update billing.subscription set not_found = true, refetch_after = now() + %s"
                    " where id = %s",
                    [again_after, subscription_id],
                )

    async def put_off(self, subscription_id: str) -> None:
        """Let the others that wait for a look at Stripe go first.

        Raises:
            TransientError: Postgres is away.
        """
        with transient_errors():
            async with self._pool.connection() as connection:
                await connection.execute(
                    "update billing.subscription set updated_at = now() where id = %s", [subscription_id]
                )

    async def bury(
        self, event_id: str | None, event_type: str, origin: Origin, code: str, detail: str
    ) -> None:
        """Set aside a message that is no event anybody could decide on.

        Raises:
            TransientError: Postgres is away.
        """
        with transient_errors():
            async with self._pool.connection() as connection:
                await bury(connection, "billing", [_burial(event_id, event_type, origin, code, detail)])

    async def _is_first(self, connection: AsyncConnection, event: StripeEvent, decision: Decision) -> bool:
        """Note the event, and a thin one's twin, as applied; whether neither was."""
        ids = [event.id] if event.twin is None else [event.id, event.twin]
        noted = await (
            await connection.execute(
                _APPLIED,
                {
                    "ids": ids,
                    "type": event.type,
                    "outcome": decision.outcome.value,
                    "about": about(event),
                    "second": event.second,
                },
            )
        ).fetchall()
        return len(noted) == len(ids)

    async def _write(
        self, connection: AsyncConnection, event: StripeEvent, decision: Decision, origin: Origin
    ) -> int:
        if decision.row is not None:
            await put_subscription(connection, decision.row, livemode=event.livemode, account=event.account)
        if decision.learned is not None:
            await learn(connection, decision.learned, event.second)
        if decision.flag_customer is not None:
            await connection.execute(
                "update billing.subscription set needs_refetch = true, version = version + 1"
                " where customer = %s and status not in ('canceled', 'incomplete_expired')",
                [decision.flag_customer],
            )
        if decision.wants_reconcile:
            await connection.execute(
                "update billing.cursor set second = 0 where name = %s", [RECONCILE_SUBSCRIPTIONS]
            )
        await connection.execute("delete from billing.quarantine where event_id = %s", [event.id])
        await say(connection, decision.words, event.id)
        await follow(connection, decision.words)
        told = await tell(connection, decision.tenant, decision.facts, origin.traceparent)
        if decision.tenant is not None:
            await keep_payment(connection, decision.payment, decision.tenant, decision.payment_names)
            for entry in decision.entries:
                owner, facts = await keep_entry(connection, entry, decision.tenant)
                told += await tell(connection, owner, facts, origin.traceparent)
        return told

    async def _quarantine(
        self, connection: AsyncConnection, event: StripeEvent, decision: Decision, origin: Origin
    ) -> None:
        await connection.execute(
            _QUARANTINE,
            {
                "id": event.id,
                "type": event.type,
                "customer": hints(event).customer,
                "subscription": hints(event).subscription,
                "named": decision.named,
                "subject": origin.subject,
                "body": origin.body,
                "epoch": origin.epoch,
                "seq": origin.seq,
                "stored_at": origin.stored_at,
                "reason": decision.reason,
                "waits_for": [*hints(event).references, *filter(None, [hints(event).payment])],
            },
        )

    async def _bury(
        self, connection: AsyncConnection, event: StripeEvent, decision: Decision, origin: Origin, detail: str
    ) -> None:
        burial = _burial(event.id, event.type, origin, decision.reason, detail)
        await bury(connection, "billing", [burial])


def about(event: StripeEvent) -> list[str]:
    """Every id by which an event may be looked for."""
    said = hints(event)
    named = (event.object_id, said.customer, said.subscription, said.payment, *said.references)
    return sorted({name for name in named if name is not None})


def _burial(event_id: str | None, event_type: str, origin: Origin, code: str, detail: str) -> Burial:
    return Burial(origin, code, detail, {"event_id": event_id, "type": event_type})
